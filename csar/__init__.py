"""CSAR archives and the TOSCA profile for microservices: from hostile bytes to a `ServiceDescriptor`, and `pack`."""

from csar.extract import extract_directory, extract_file, file_pieces
from csar.limits import Limits
from csar.packing import pack
from csar.parser import Parser, describe, describe_sync
from csar.refusals import REFUSALS

__all__ = [
    "REFUSALS",
    "Limits",
    "Parser",
    "describe",
    "describe_sync",
    "extract_directory",
    "extract_file",
    "file_pieces",
    "pack",
]
