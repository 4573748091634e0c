"""The fetcher: the one place where addresses of strangers are opened.

Rules that are not visible in a signature:

- `address_allowed` decides when a connection is made, for every address a name resolves to and on every hop, and the
  address it looked at is the one connected to.
- Every URL of a crawl lies in one embedded database (`state`): to do, in flight, done, refused with a reason, or
  failed with a kind. What it holds is enough to go on after a kill at any moment.
- Scrapy runs in a process of its own (`process`), which ends with its parent. Its middlewares and extensions are off:
  redirects, robots.txt, pace and retries are entries of the database here, so that they survive a kill, too.
"""
