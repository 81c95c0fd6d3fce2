"""Files of TLS on the wire between gateways and engines."""

from pydantic import Field

from qwenfleet.cluster.config.section import Section


class TlsConfig(Section):
    """A certificate for gateways and engines, and the authority that signed it.

    Gateways and engines accept every certificate of that authority, so it should sign nothing else.
    """

    certificate: str = Field(
        pattern=r"^/",
        description="Absolute path of a PEM file with a certificate chain. This and the other two "
        "files must exist on every node that runs a gateway or an engine, and are read again when "
        "they change.",
    )
    key: str = Field(
        pattern=r"^/", description="Absolute path of a PEM file with the certificate's private key."
    )
    authority: str = Field(
        pattern=r"^/",
        description="Absolute path of a PEM file with the certificate of the authority that signed "
        "the certificates of this fleet, and should sign no others.",
    )
