"""Images by their web address, from hosts that were named when the service was started, and never from a private network.

The name of a host is resolved here, every address it has is checked, and the connection goes to the address that was checked: a name
that changes its address between check and use leads nowhere. Redirections are followed by the same rules.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import closing
from urllib.parse import urljoin, urlsplit

from image_reward.serving.errors import RequestError, invalid

_MOST_REDIRECTS = 3
_BLOCK = 1 << 16
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


def is_public(address: str) -> bool:
    """
    >>> is_public("8.8.8.8"), is_public("10.0.0.1"), is_public("169.254.169.254"), is_public("::ffff:127.0.0.1")
    (True, False, False, False)

    Of IPv6 only global unicast, 2000::/3, is public: the rest holds forms of private IPv4 addresses, such as 64:ff9b::7f00:1 and ::7f00:1,
    that Python takes for global ones.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast


def resolve(host: str, port: int) -> list[str]:
    return list(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


class _Connection(http.client.HTTPConnection):
    """To an address that was checked, whatever the name of the host resolves to by now."""

    def __init__(self, host: str, port: int, address: str, timeout: float, encrypted: bool) -> None:
        super().__init__(host, port, timeout=timeout)
        self.address, self.encrypted = address, encrypted

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), self.timeout)
        if self.encrypted:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def fetch(url: str, field: str, hosts: Sequence[str], max_bytes: int, seconds: float) -> bytes:
    """The bytes at an address. Raises ``RequestError`` that names the field."""
    deadline = time.monotonic() + seconds
    for _ in range(_MOST_REDIRECTS + 1):
        connection, target = _connection(url, field, hosts, deadline)
        with closing(connection):
            try:
                connection.request(
                    "GET", target, headers={"accept": "image/*", "accept-encoding": "identity", "user-agent": "image-reward"}
                )
                with connection.getresponse() as response:
                    location = response.getheader("location")
                    if response.status in (301, 302, 303, 307, 308) and location:
                        url = urljoin(url, location)
                        continue
                    if response.status != 200:
                        raise invalid(field, f"its address answered with {response.status}", "send the image itself")
                    return _read(response, field, max_bytes, deadline)
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = type(error).__name__
                raise invalid(field, f"its address could not be read ({reason})", "send the image itself, or try again later") from None
    raise invalid(field, f"its address redirects more than {_MOST_REDIRECTS} times", "send the image itself")


def _connection(url: str, field: str, hosts: Sequence[str], deadline: float) -> tuple[_Connection, str]:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
        if any(ord(character) <= 32 or ord(character) > 126 for character in url):
            raise ValueError
    except ValueError:
        raise invalid(field, "its address is malformed", "percent-encode it, or send the image as a data URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise invalid(field, "its address is neither http nor https", "send the image as a data URL")
    if parts.username is not None:
        raise invalid(field, "its address holds a user name", "send the image as a data URL")
    if host not in hosts:
        allowed = f"those of {', '.join(hosts)} are" if hosts else "none are"
        raise RequestError(
            422,
            field,
            f"images of the host {host:.100} are not fetched; {allowed}",
            f"send a data URL, or start the service with --allow-fetch {host:.100}",
        )
    port = port or (443 if parts.scheme == "https" else 80)
    try:
        addresses = resolve(host, port)
    except (OSError, UnicodeError):
        raise invalid(field, f"the host {host:.100} is not known", "send the image as a data URL") from None
    if not addresses or not all(map(is_public, addresses)):
        raise invalid(field, f"the host {host:.100} is in a private network, from which nothing is fetched", "send the image as a data URL")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Connection(host, port, addresses[0], max(0.001, deadline - time.monotonic()), parts.scheme == "https"), target


def _read(response: http.client.HTTPResponse, field: str, max_bytes: int, deadline: float) -> bytes:
    content = bytearray()
    while block := response.read1(_BLOCK):
        content += block
        if len(content) > max_bytes:
            raise RequestError(413, field, f"what its address holds has more than {max_bytes:,} bytes", "send a smaller image")
        if time.monotonic() > deadline:
            raise invalid(field, "its address answers too slowly", "send the image itself")
    return bytes(content)
