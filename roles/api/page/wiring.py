"""The page's parts, joined."""

from roles.api.context import Api
from roles.api.page.handlers import PageHandlers
from roles.api.page.live import LivePage
from roles.api.page.reader import PageReader
from roles.api.page.rendering import Pages


def build_page(api: Api) -> tuple[PageHandlers, LivePage]:
    """The handlers for the application, and the component that keeps the front page up to date."""
    reader = PageReader(api)
    pages = Pages()
    live = LivePage(reader, pages, api.clock, api.metrics)
    return PageHandlers(reader, pages, live, api.limits, api.clock), live
