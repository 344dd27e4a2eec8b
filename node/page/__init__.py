"""The page that every controller serves at `/`, for phones. Its files lie here as they are sent: nothing is built."""

from node.page.routes import page_routes

__all__ = ["page_routes"]
