import jax.numpy as jnp
import numpy as np
import pytest

from sdd_jax.diffusion.timegrid import (
    BOUNDARIES,
    forward_target,
    grid_pairs,
    reverse_target,
    sampling_times,
    solver_grid,
    trailing_grid,
)


def test_the_grid_of_fifty():
    np.testing.assert_array_equal(trailing_grid(50), np.arange(999, 0, -20))
    np.testing.assert_array_equal(solver_grid(), np.arange(19, 1000, 20))
    np.testing.assert_array_equal(trailing_grid(4), [999, 749, 499, 249])


def test_every_grid_has_its_size_descends_and_starts_at_the_noisiest_time():
    for n in range(1, 1001):
        grid = trailing_grid(n)
        assert grid.shape == (n,) and grid[0] == 999 and grid[-1] >= 0 and (n == 1 or np.diff(grid).max() < 0), n


@pytest.mark.parametrize("grid", [1, 20, 50, 77, 1000])
def test_every_number_of_sampling_steps_gives_as_many_times_of_the_grid(grid):
    points = set(trailing_grid(grid).tolist())
    for n in range(1, grid + 1):
        times = sampling_times(n, grid)
        assert times.shape == (n,) and times[0] == 999 and (n == 1 or np.diff(times).max() < 0), n
        assert set(times.tolist()) <= points
    np.testing.assert_array_equal(sampling_times(grid, grid), trailing_grid(grid))


def test_sampling_times_over_all_timesteps_are_the_trailing_grid_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    for n in (1, 2, 3, 4, 7, 8, 16, 50, 333):
        scheduler.set_timesteps(n)
        np.testing.assert_array_equal(sampling_times(n), scheduler.timesteps.numpy())


def test_sampling_times_of_a_coarse_grid():
    np.testing.assert_array_equal(sampling_times(4, 20), [999, 749, 499, 249])
    np.testing.assert_array_equal(sampling_times(4, 50), [999, 759, 499, 239])


@pytest.mark.parametrize("n, grid", [(0, 20), (21, 20), (5, 1001)])
def test_impossible_grids_are_refused(n, grid):
    with pytest.raises(ValueError, match="choose 1"):
        sampling_times(n, grid)


@pytest.mark.parametrize("n", [2, 20, 50, 999, 1000])
def test_ccd_pairs_are_neighbours_and_never_clean(n):
    t, s = grid_pairs(n)
    grid = solver_grid(n)
    np.testing.assert_array_equal(t, grid[1:])
    np.testing.assert_array_equal(s, grid[:-1])
    assert t.shape == (n - 1,) and (s < t).all() and s.min() >= 0 and t[-1] == 999


def test_one_point_has_no_pair():
    with pytest.raises(ValueError, match="no pair"):
        grid_pairs(1)


def _runs(t, s):
    """[(first t, last t, s, count)] of the map t -> s."""
    return [(int(t[s == b][0]), int(t[s == b][-1]), int(b), int((s == b).sum())) for b in np.unique(s)]


def test_published_reverse_boundaries():
    t = solver_grid()
    low, s = reverse_target(jnp.asarray(t), BOUNDARIES["4_tau0.8"].reverse)
    assert _runs(t, np.asarray(s)) == [(19, 259, 0, 13), (279, 519, 259, 13), (539, 779, 519, 13), (799, 999, 779, 11)]
    assert low[0] == 0 and (low[1:] == t[:-1]).all() and (s <= low).all()
    _, s = reverse_target(jnp.asarray(t), BOUNDARIES["3_tau0.7"].reverse)
    assert [count for *_, count in _runs(t, np.asarray(s))] == [17, 18, 15]


def test_published_forward_boundaries():
    t = solver_grid()[:-1]
    high, s = forward_target(jnp.asarray(t), BOUNDARIES["4_tau0.8"].reverse)
    runs = [(19, 239, 259, 12), (259, 499, 519, 13), (519, 759, 779, 13), (779, 979, 999, 11)]
    assert _runs(t, np.asarray(s)) == runs
    assert (high == solver_grid()[1:]).all() and (s >= high).all()


@pytest.mark.parametrize("name", list(BOUNDARIES))
def test_jump_lists_mirror_each_other(name):
    boundaries = BOUNDARIES[name]
    reverse, forward = boundaries.reverse_jumps, boundaries.forward_jumps
    np.testing.assert_array_equal(forward[1:], reverse[-2::-1, ::-1])
    assert (reverse[0, 0], reverse[-1, 1]) == (999, 0) and (forward[0, 0], forward[-1, 1]) == (19, 999)
    grid = solver_grid()
    assert np.isin(boundaries.reverse, grid).all() and np.isin(boundaries.forward, grid).all()


def test_published_jumps():
    jumps = BOUNDARIES["4_tau0.8"]
    assert jumps.reverse_jumps.tolist() == [[999, 779], [779, 519], [519, 259], [259, 0]]
    assert jumps.forward_jumps.tolist() == [[19, 259], [259, 519], [519, 779], [779, 999]]
