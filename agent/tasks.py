"""The agent's tasks are owned as everybody's are: see `dht.tasks`."""

from dht.tasks import OwnedTasks, running_loops

__all__ = ["OwnedTasks", "running_loops"]
