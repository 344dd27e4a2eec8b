"""The agent's tasks are owned as everybody's are: see `dht.tasks`."""

from dht.tasks import OwnedTasks

__all__ = ["OwnedTasks"]
