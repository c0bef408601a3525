"""The HTTP proxy through which a hospital reaches the outside, named by `HTTPS_PROXY` and `NO_PROXY` as for other
programs.

Three of ours dial out, and each reads these variables in its own way: Flower's node (httpx) in either spelling, gRPC
in small letters only, and we ourselves here. So both spellings are set to the same before anything dials, and this
machine's loopback is never asked of a proxy.
"""

import http.client
import re
import socket
from base64 import b64encode
from collections.abc import MutableMapping
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from common.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
UNREACHED = range(500, 505)
"""What a proxy answers with where it is well and who is asked for is not; 407, 403 or 405 is its own refusal."""


def settle(environment: MutableMapping[str, str]) -> None:
    """Set both spellings of the two variables, and leave loopback out."""
    proxy = environment.get("https_proxy") or environment.get("HTTPS_PROXY")
    if proxy:
        environment["https_proxy"] = environment["HTTPS_PROXY"] = proxy
    direct = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    names = [name.strip() for name in direct.split(",") if name.strip()]
    names += [name for name in LOOPBACK if name not in names]
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(names)


def proxy_to(host: str) -> SplitResult | None:
    """The proxy by which this process reaches a host; None where it dials straight.

    Raises:
        UserError: the variable does not name an HTTP proxy with its port.
    """
    text = getproxies().get("https", "")
    if not text or proxy_bypass(host):
        return None
    try:
        proxy = urlsplit(text if "://" in text else f"http://{text}")
        usable = proxy.scheme == "http" and bool(proxy.hostname) and proxy.port is not None
    except ValueError:
        usable = False
    if not usable:
        # Not the value itself: it may hold a password.
        raise UserError(
            "HTTPS_PROXY names no proxy that can be used.", "Write http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT."
        )
    return proxy


def shown(proxy: SplitResult) -> str:
    """Without user and password."""
    return f"{proxy.hostname}:{proxy.port}"


def dial(host: str, port: int, timeout_s: float) -> socket.socket:
    """A TCP connection to a host of the outside, through the proxy where there is one.

    Raises:
        UserError: the proxy refuses.
        OSError: nobody answers there.
    """
    proxy = proxy_to(host)
    if proxy is None:
        return socket.create_connection((host, port), timeout=timeout_s)
    assert proxy.hostname is not None
    headers = {}
    if proxy.username is not None:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
    connection = http.client.HTTPConnection(proxy.hostname, proxy.port, timeout=timeout_s)
    connection.set_tunnel(host, port, headers)
    try:
        connection.connect()
    except OSError as error:
        status = re.match(r"Tunnel connection failed: (\d+)", str(error))
        if status is None or int(status[1]) in UNREACHED:
            raise
        raise UserError(
            f"The proxy {shown(proxy)} does not let this machine through to {host}:{port} (HTTP {status[1]}).",
            "Have it allow CONNECT to that host and port; where it asks for a password, write it into HTTPS_PROXY.",
        ) from None
    except http.client.HTTPException:
        raise UserError(f"What answers at {shown(proxy)} is no HTTP proxy.", "Correct HTTPS_PROXY.") from None
    return connection.sock
