"""Subgroups: counted by patient, small ones flagged, slices by where they lie."""

import dataclasses

from hscc_edge.data.subgroups import SMALL, UNKNOWN, subgroups


def cells(cohort, column):
    return {cell.value: cell for cell in subgroups(cohort) if cell.column == column}


def test_every_patient_is_in_one_cell_of_each_column(phantom):
    patients = {item.patient for item in phantom.instances}
    for column in {cell.column for cell in subgroups(phantom)} - {"slice_position"}:
        found = cells(phantom, column)
        assert sum(cell.patients for cell in found.values()) == len(patients)
        assert sum(cell.images for cell in found.values()) == len(phantom.instances)
        for cell in found.values():
            assert sum(cell.by_split.values()) == sum(cell.by_label.values()) == cell.patients
    assert set(cells(phantom, "sex")) == {"F", "M", "O"} and set(cells(phantom, "modality")) == {"MR"}


def test_slices_are_told_by_their_place(phantom):
    found = cells(phantom, "slice_position")
    assert {value: cell.images for value, cell in found.items()} == {
        "first third": 40, "middle third": 40, "last third": 40,
    }  # fmt: skip


def test_unknown_values_and_small_cells(phantom):
    sites = ["A"] * (3 * (SMALL + 1)) + [""] * len(phantom.instances)
    items = tuple(
        dataclasses.replace(item, site=site, split="test") for item, site in zip(phantom.instances, sites, strict=False)
    )
    found = cells(dataclasses.replace(phantom, instances=items), "site")
    assert found["A"].patients == SMALL + 1 and not found["A"].small
    assert found[UNKNOWN].small
    assert "site" not in {cell.column for cell in subgroups(phantom)}
