"""The command line `cornerstore`. Each command's module is imported when it is asked for: starting stays quick."""

import click

from node.cli.framework import LazyGroup

_commands = LazyGroup(
    name="cornerstore",
    help="A peer-to-peer microservice store for the edge: a shop at every corner.",
    commands_at={
        "bootstrap": "node.cli.operators:bootstrap",
        "up": "node.cli.operators:up",
        "status": "node.cli.operators:status",
        "agents": "node.cli.operators:agents",
        "regions": "node.cli.operators:regions",
        "pack": "node.cli.developers:pack",
        "validate": "node.cli.developers:validate",
        "publish": "node.cli.developers:publish",
        "seed": "node.cli.developers:seed",
        "search": "node.cli.developers:search",
        "show": "node.cli.developers:show",
        "fetch": "node.cli.developers:fetch",
        "withdraw": "node.cli.developers:withdraw",
        "discover": "node.cli.clients:discover",
        "start": "node.cli.clients:start",
        "ps": "node.cli.clients:ps",
        "logs": "node.cli.clients:logs",
        "stop": "node.cli.clients:stop",
        "restart": "node.cli.clients:restart",
        "alive": "node.cli.clients:alive",
        "rm": "node.cli.clients:remove",
        "invoke": "node.cli.clients:invoke",
        "demo": "node.cli.operators:demo",
    },
)

main = click.version_option(package_name="cornerstore")(_commands)

__all__ = ["main"]
