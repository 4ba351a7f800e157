"""HTML to PDF by WeasyPrint: tagged (PDF/UA-1), the same bytes for the same page on machines with the same versions.

The dates are the page's own (`dcterms`), the identifier is a digest of the page, and the fonts are those that
matplotlib brings, so that neither the clock nor the machine's fonts show.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from hscc_edge.errors import MissingExtraError, extra

with extra("workstation"):
    import matplotlib

SYSTEM = "apt install libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0"
FACES = (
    ("DejaVu Sans", "normal", "normal", "DejaVuSans.ttf"),
    ("DejaVu Sans", "bold", "normal", "DejaVuSans-Bold.ttf"),
    ("DejaVu Sans Mono", "normal", "normal", "DejaVuSansMono.ttf"),
)


def to_pdf(html: str) -> bytes:
    """The page as a PDF; nothing is loaded but the fonts.

    Raises:
        MissingExtraError: if WeasyPrint or its system libraries are missing.
    """
    try:
        with extra("workstation"):
            from weasyprint import CSS, HTML
            from weasyprint.text.fonts import FontConfiguration
            from weasyprint.urls import URLFetcher
    except OSError as error:
        raise MissingExtraError(f"the PDF needs Pango and HarfBuzz, which this system lacks: {SYSTEM}") from error
    fonts = FontConfiguration()
    style = CSS(string=_style(), font_config=fonts, url_fetcher=URLFetcher(allowed_protocols=("file",)))
    inside = URLFetcher(allowed_protocols=("data",), fail_on_errors=True)
    page = HTML(string=html.replace("sans-serif", "'DejaVu Sans'"), url_fetcher=inside)
    made = page.write_pdf(
        stylesheets=[style],
        font_config=fonts,
        pdf_variant="pdf/ua-1",
        pdf_identifier=hashlib.sha256(html.encode()).hexdigest()[:32].encode(),
    )
    return bytes(made)


def _style() -> str:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = [
        f"@font-face {{ font-family: '{family}'; font-weight: {weight}; font-style: {slant}; "
        f"src: url({(folder / name).as_uri()}) }}"
        for family, weight, slant, name in FACES
    ]
    return "\n".join([*faces, "body { font-family: 'DejaVu Sans' } code, pre { font-family: 'DejaVu Sans Mono' }"])
