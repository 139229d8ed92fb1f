"""UCR series against the archive's own counts, and damaged files."""

import numpy as np
import pytest

from jaxlab.data import UCR, read_ts, ucr
from jaxlab.errors import InputError

# Training and test size, length, classes: the archive's table.
SHAPES = {
    "ACSF1": (100, 100, 1460, 10),
    "ArrowHead": (36, 175, 251, 3),
    "GunPoint": (50, 150, 150, 2),
    "ItalyPowerDemand": (67, 1029, 24, 2),
    "OSULeaf": (200, 242, 427, 6),
}


@pytest.mark.parametrize("name", UCR)
def test_sets_have_the_archives_sizes(name):
    train, test = ucr(name)
    trained, tested, length, classes = SHAPES[name]
    assert train.series.shape == (trained, length) and test.series.shape == (tested, length)
    assert set(train.classes) == set(test.classes) == set(range(classes))
    assert np.isfinite(train.series).all() and np.isfinite(test.series).all()


def test_values_are_the_files():
    train, _ = ucr("GunPoint")
    np.testing.assert_array_equal(train.series[0, :3], [-0.6478854, -0.64199155, -0.63818632])
    np.testing.assert_allclose(train.series.mean(1), 0, atol=1e-6)  # the archive's series are standardised


def test_files_are_read_and_damage_is_named(tmp_path):
    file = tmp_path / "own.ts"
    head = "@problemName own\n@classLabel true a b\n@data\n"
    file.write_text(head + "1,2,3:b\n4,5,6:a\n")
    found = read_ts(file)
    assert found.series.tolist() == [[1, 2, 3], [4, 5, 6]] and found.classes.tolist() == [1, 0]
    for content, message in (
        (head + "1,2,3:b\n4,5:a\n", "series 2 has 2 samples, the first 3"),
        (head + "1,NaN:b\n", "series 1 has gaps"),
        (head + "1,x:b\n", "series 1 holds what is not a number"),
        (head + "1,2\n", "series 1 must be one channel"),
        (head + "1,2:3,4:a\n", "series 1 must be one channel"),
        (head, "holds no series"),
        ("1,2:b\n", "has no @data line"),
        ("@classLabel false\n@data\n1,2\n", "has no class labels"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            read_ts(file)
    with pytest.raises(InputError, match="is not a file"):
        read_ts(tmp_path / "none.ts")
    with pytest.raises(InputError, match="known are ACSF1, ArrowHead"):
        ucr("Gun")
