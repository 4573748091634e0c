"""The one blueprint that every page hangs on."""

from flask import Blueprint

bp = Blueprint("pages", __name__)
