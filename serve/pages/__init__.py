"""What people see in the browser, a module a page; importing them hangs them on the blueprint."""

from serve.pages import by_picture, compare, files, image, judge, quality, search, tags, why
from serve.pages.blueprint import bp

__all__ = ["bp", "by_picture", "compare", "files", "image", "judge", "quality", "search", "tags", "why"]
