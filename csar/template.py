"""What a service template may say: an allow-list of keys, exact types, names that exist, one chain with one end.

This stands before tosca-parser, which accepts (and fetches, and loops over) far more than a stranger may ask for.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from csar.findings import raise_first
from csar.strict_yaml import Document
from csar.template_contents import check_contents, order_chain
from csar.template_inputs import check_inputs, fill_inputs
from csar.template_shape import check_shape


class Vetted(Struct, frozen=True):
    """A template that passed. `topology` is ready for tosca-parser: inputs are filled in, nothing refers outside.

    `chain` lists the node templates, upstream first; its last is the service that the archive offers.
    """

    document: Document
    topology: dict[str, Any]
    chain: tuple[str, ...]

    @property
    def service(self) -> str:
        return self.chain[-1]


def vet(document: Document) -> Vetted:
    """Raises InvalidArchive for the first thing wrong; `extra["problems"]` lists up to 20."""
    raise_first(document, check_shape(document.value))
    topology = document.value["topology_template"]
    raise_first(document, check_inputs(topology.get("inputs", {}), ("topology_template", "inputs")))
    filled = fill_inputs(document, topology)
    raise_first(document, check_contents(filled))
    return Vetted(document, filled, order_chain(document, filled["node_templates"]))
