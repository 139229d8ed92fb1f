"""The registry knows every teacher of the package, and nothing that is not there."""

import re

import pytest

import jaxlab.teachers
from jaxlab.errors import InputError
from jaxlab.teachers import HOOKS, TEACHERS, builder_of, find_teacher, teachers_table

GENERIC = {"every_episode_teacher", "periodic_teacher", "find_teacher"}
"""These make teachers of parts, or look one up; `X_with_teacher` are environments."""


def test_every_teacher_of_the_package_has_an_entry_and_every_builder_exists():
    named = {entry.builder for entry in TEACHERS}
    exported = {
        name
        for name in jaxlab.teachers.__all__
        if name.endswith("_teacher") and not name.endswith("_with_teacher") and name not in GENERIC
    }
    assert exported <= named
    assert named - exported == {"relabel", "sample_transitions"}
    assert all(callable(builder_of(entry)) for entry in TEACHERS)
    names = [entry.name for entry in TEACHERS]
    assert len(set(names)) == len(names)


def test_papers_can_be_looked_up():
    assert all(re.fullmatch(r"arXiv:\d{4}\.\d{5}|doi:10\.\S+/\S+", entry.paper) for entry in TEACHERS)


def test_a_name_is_found_and_others_list_the_choices():
    assert find_teacher("accel").builder == "accel_teacher"
    with pytest.raises(InputError, match="name is 'acel'; it must be one of random, oracle, .*, accel, "):
        find_teacher("acel")


def test_the_tables_have_a_row_a_method_and_as_many_cells_as_heads():
    first, second = teachers_table().strip().split("\n\n")
    for table, rows, cells in ((first, TEACHERS, 6), (second, HOOKS, 4)):
        lines = table.splitlines()
        assert len(lines) == len(rows) + 2
        assert all(line.count("|") == cells + 1 for line in lines)
        for line, row in zip(lines[2:], rows, strict=True):
            assert line.startswith(f"| {row.name} |")
