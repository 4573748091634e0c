"""The fetching process: `python -m crawl.fetch`, started and stopped by `crawl.fetch.process`.

Its order comes as one line of JSON on standard input. When that closes, because the parent wants it or has died, the
process hands out nothing more and ends within seconds; what is then in flight is asked again the next time.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from scrapy import signals
from scrapy.crawler import CrawlerProcess

from crawl.fetch.process import GRACE_S, Order
from crawl.fetch.register import bounds_of
from crawl.fetch.spider import Fetcher, Line, telling
from crawl.fetch.state import State
from crawl.sources.network import open_finder

# Scrapy as an engine alone: everything that acts by itself is off.
SETTINGS: dict[str, Any] = {
    "CONCURRENT_REQUESTS": 0,  # the frontier counts
    "CONCURRENT_REQUESTS_PER_DOMAIN": 1_000_000,
    "CONCURRENT_ITEMS": 1,  # there are none, and Scrapy starts so many tasks for each answer
    "DOWNLOAD_DELAY": 0,
    "DOWNLOAD_HANDLERS": {
        "http": "crawl.fetch.downloads.GuardedDownloads",
        "https": "crawl.fetch.downloads.GuardedDownloads",
    },
    "DOWNLOAD_HANDLERS_BASE": {},  # no file:, data:, ftp: and s3:
    "DOWNLOADER_MIDDLEWARES_BASE": {},  # no redirects, cookies, proxies, referers and retries of its own
    "SPIDER_MIDDLEWARES_BASE": {},
    "EXTENSIONS_BASE": {},  # no telnet, no remote control
    "TELNETCONSOLE_ENABLED": False,
    "REMOTE_CONTROL_ENABLED": False,
    "SCHEDULER": Line,
    "TWISTED_DNS_RESOLVER": "crawl.fetch.connect.TwistedNames",
    "LOG_ENABLED": False,
    "LOG_INSTALL_ROOT_HANDLER": False,
    "REACTOR_THREADPOOL_MAXSIZE": 20,  # for resolving names
}


def main() -> None:
    """Read the order, crawl, and end."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    order = Order.from_json(json.loads(sys.stdin.buffer.readline()))
    options = order.options
    with telling():
        state = State(Path(order.database), bounds_of(options), order.share)
        state.recover(time.time() + options.max_wait_s)
    logging.disable(logging.INFO)  # Scrapy tells of every request; what matters stands in the database
    process = CrawlerProcess({**SETTINGS, "FETCH": options})
    crawler = process.create_crawler(Fetcher)
    process.crawl(crawler, state=state, options=options, finder=open_finder(order.source, options.agent), order=order)
    threading.Thread(target=_await_end, args=(crawler,), daemon=True).start()
    crawler.signals.connect(_give_up, signals.spider_error)
    gc.freeze()  # what was imported stays, and need not be looked through for every hundred answers
    process.start(install_signal_handlers=False)
    state.close()
    if not getattr(crawler.spider, "came_to_an_end", False):
        raise SystemExit(1)  # Scrapy has logged why


def _give_up() -> None:
    os._exit(1)  # an error of ours, which Scrapy has logged; to go on would leave an address in flight for ever


def _await_end(crawler: Any) -> None:
    from twisted.internet import reactor as installed

    reactor: Any = installed
    while os.read(sys.stdin.fileno(), 1):  # past Python's buffer, whose lock would hold up the end
        pass
    reactor.callFromThread(crawler.spider.stop)
    time.sleep(GRACE_S)
    os._exit(0)  # answers are still on their way, and may be for minutes; the state is whole at any moment


if __name__ == "__main__":
    main()
