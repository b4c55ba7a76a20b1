"""TLS contexts for clients that trust a certificate as browsers, curl, Node.js and Java do."""

import ssl

import httpx2


def context(ca: str = "") -> ssl.SSLContext:
    """Return a context that trusts this CA (PEM), or the system's CAs if it is empty.

    From Python 3.13 on, the ssl module refuses CAs without `keyUsage` (VERIFY_X509_STRICT), such as those that
    `elasticsearch-certutil` makes, and trusts intermediate certificates by themselves (VERIFY_X509_PARTIAL_CHAIN). The
    clients of Elastic do neither. Signatures, dates and names are checked as ever. Raises ssl.SSLError for text that
    is no certificate.
    """
    made = ssl.create_default_context(cadata=ca) if ca else httpx2.create_ssl_context()
    made.verify_flags &= ~(ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN)
    return made
