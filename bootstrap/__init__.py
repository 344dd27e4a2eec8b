"""How a mesh begins and grows: its root, invitations, joining, certificates, and the TLS that rests on them."""

from bootstrap.certificates import founder_of, mesh_mark, peer_identity, peer_until, renewal_due, validity
from bootstrap.enrol import Contacts, Enroller, enrol_routes
from bootstrap.enrolment import ENROL_PATHS
from bootstrap.identity import Identity, has_identity, has_root_key, mesh_root
from bootstrap.invites import Invitation, create_invite
from bootstrap.join import JoinResult, join
from bootstrap.mesh import create_mesh
from bootstrap.renewal import renew, renew_own
from bootstrap.tls import client_context, server_context, use_renewed

__all__ = [
    "ENROL_PATHS",
    "Contacts",
    "Enroller",
    "Identity",
    "Invitation",
    "JoinResult",
    "client_context",
    "create_invite",
    "create_mesh",
    "enrol_routes",
    "founder_of",
    "has_identity",
    "has_root_key",
    "join",
    "mesh_mark",
    "mesh_root",
    "peer_identity",
    "peer_until",
    "renew",
    "renew_own",
    "renewal_due",
    "server_context",
    "use_renewed",
    "validity",
]
