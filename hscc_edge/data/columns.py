"""Facts of headers as the columns of a cohort's table."""

from __future__ import annotations

from hscc_edge.data.facts import Facts


def columns_of(facts: Facts) -> dict[str, str]:
    """Column -> text; "" for what the headers do not say."""
    shown: dict[str, object] = {
        "site": facts.site,
        "scanner": facts.scanner,
        "sex": facts.sex,
        "age_band": facts.age_band,
        "field_strength_t": facts.field_strength_t,
        "modality": facts.modality,
        "body_part": facts.body_part,
        "orientation": facts.orientation,
        "slice_position_mm": facts.slice_position_mm,
        "contrast": "yes" if facts.contrast else "no",
        "transfer_syntax": facts.transfer_syntax,
        "rows": facts.rows,
        "columns": facts.columns,
    }
    return {name: _text(value) for name, value in shown.items()}


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
