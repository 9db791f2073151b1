"""The concept space: cells and their numbers, distances, and regions in words."""

import numpy as np
import pytest

from stages.concepts import Concept, ConceptSpace, Region

SPACE = ConceptSpace(
    (
        Concept("rotation", (0.0, 15.0, 30.0, 45.0), "°", neutral=0.0),
        Concept("saturation", (1.0, 0.5, 0.25, 0.0), neutral=1.0),
        Concept("weather", ("sun", "rain", "fog"), ordered=False, neutral="sun"),
    )
)


def test_cells_and_their_numbers_are_two_names_of_the_same() -> None:
    cells = SPACE.cells()
    assert cells.shape == (48, 3) == (SPACE.n_cells, len(SPACE))
    np.testing.assert_array_equal(SPACE.flat(cells), np.arange(48))
    assert cells[1].tolist() == [0, 0, 1]  # the last concept varies fastest
    np.testing.assert_array_equal(SPACE.cells(np.array([47, 0])), [[3, 3, 2], [0, 0, 0]])


def test_distances_follow_order_for_ordered_concepts_and_are_equal_for_categories() -> None:
    points = SPACE.coordinates(np.array([[0, 0, 0], [1, 0, 0], [3, 0, 0], [0, 0, 1], [0, 0, 2]]))
    np.testing.assert_allclose(np.linalg.norm(points - points[0], axis=1), [0, 1 / 3, 1, 1, 1])


def test_draws_cover_the_grid_and_stay_inside() -> None:
    rng = np.random.default_rng(0)
    assert set(SPACE.flat(SPACE.sample(2000, rng)).tolist()) == set(range(48))
    region = Region({"rotation": (2, 3), "weather": (1,)})
    drawn = region.sample(SPACE, 500, rng)
    assert region.contains(SPACE, drawn).all() and len(np.unique(SPACE.flat(drawn))) == region.n_cells(SPACE) == 8
    assert region.contains(SPACE, SPACE.cells()).sum() == 8


@pytest.mark.parametrize(
    ("allowed", "text"),
    [
        ({"rotation": (2, 3)}, "rotation >= 30°"),
        ({"rotation": (1, 2)}, "15° <= rotation <= 30°"),
        ({"saturation": (1, 2, 3)}, "saturation <= 0.5"),  # its values decrease with strength,
        ({"saturation": (1, 2)}, "0.25 <= saturation <= 0.5"),
        ({"rotation": (3,), "saturation": (3,)}, "rotation = 45° and saturation = 0"),
        ({}, "everywhere"),
    ],
)
def test_a_region_in_words(allowed: dict, text: str) -> None:
    assert Region(allowed).describe(SPACE) == text and Region.from_json(Region(allowed).to_json()) == Region(allowed)


def test_the_neutral_cell() -> None:
    np.testing.assert_array_equal(SPACE.neutral, [0, 0, 0])
    assert ConceptSpace((Concept("a", (1.0, 2.0), neutral=0.0),)).neutral is None
    with pytest.raises(ValueError, match="at least one concept"):
        ConceptSpace(())
    assert ConceptSpace.from_json(SPACE.to_json()) == SPACE
    places = ConceptSpace((Concept("place", ("", "sea", "wood", "town", "sky"), ordered=False, neutral=""),))
    assert Region({"place": (1, 2, 3, 4)}).describe(places) == "place is not unsaid"
