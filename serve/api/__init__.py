"""The JSON interface, one blueprint a resource, and what it shares with the pages."""
