"""RIAC: regions of the task space, split where learning progress differs, and sampled where it is large.

The tree is a table of boxes; every box, inner ones too, keeps the last episodes that fell into it. Reference: Baranes
and Oudeyer, "R-IAC: robust intrinsically motivated exploration and active learning", 2009; with the safety tricks of
github.com/flowersteam/teachDeepRL, `riac.py`.
"""

import dataclasses
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.protocol import Teacher, every_episode_teacher
from jaxlab.teachers.riac_split import Episodes, find_split, progress_of_list
from jaxlab.teachers.spaces import TaskSpace, clip_task, uniform_log_density, uniform_task

SplitScore = Literal["paper", "reference"]

_MUTATION_SHARE = 0.1
_UNIFORM_SHARE = 0.2
_MUTATION_STD = 0.1
_INSET = 1e-5


@dataclasses.dataclass(frozen=True)
class RIACConfig:
    """Options of RIAC, by default teachDeepRL's; `TEACHMYAGENT_RIAC` has the tuned ones of TeachMyAgent."""

    max_region_size: int = 200
    """A leaf with more episodes must split."""
    alp_window: int = 200
    """Episodes of a region that its learning progress looks at."""
    split_attempts: int = 50
    """Thresholds tried for a split."""
    redraws: int = 16
    """Draws of a threshold in an attempt, until both sides hold `max_region_size // 20` episodes."""
    min_extent_ratio: float = 1 / 15
    """Smallest side of a region, as a share of the whole space."""
    discard_ratio: float = 1 / 4
    """Share of a leaf's episodes that is forgotten where no split is valid."""
    split_score: SplitScore = "paper"
    """"paper": n1 n2 |ALP1 - ALP2|. "reference": 4 |ALP1 - ALP2|, what its code computes."""
    max_nodes: int = 512
    """Regions at most; a full tree splits no more, and the metric "overflow" says so."""
    max_path: int = 64
    """Regions at most that may hold one task."""
    return_range: tuple[float, float] | None = None
    """Map returns from here to [0, 1] and clip; None leaves them."""

    def __post_init__(self) -> None:
        for name in ("max_region_size", "alp_window", "split_attempts", "redraws", "max_nodes", "max_path"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be >= 1")
        if not 0 <= self.min_extent_ratio < 1:
            raise InputError(f"min_extent_ratio is {self.min_extent_ratio}; it must lie in [0, 1)")
        if not 1 <= self.max_region_size * self.discard_ratio <= self.max_region_size:
            raise InputError(
                f"discard_ratio is {self.discard_ratio}; it must be at most 1 and drop an episode or more of "
                f"{self.max_region_size}"
            )
        if self.split_score not in get_args(SplitScore):
            raise InputError(f"split_score is {self.split_score!r}; it must be 'paper' or 'reference'")

    @property
    def min_region_size(self) -> float:
        """Episodes that each side of a split must hold."""
        return self.max_region_size / 20


TEACHMYAGENT_RIAC = RIACConfig(150, 150, 75, min_extent_ratio=0.1)


class RIACState(NamedTuple):
    """The tree as a table; row 0 is the whole space, and children stand behind their parents."""

    space: TaskSpace
    low: Float[Array, "nodes dim"]
    high: Float[Array, "nodes dim"]
    leaf: Bool[Array, " nodes"]
    nodes: Int[Array, ""]
    """How many rows are in use."""
    tasks: Float[Array, "nodes slots dim"]
    """Rings of the last episodes of each region."""
    returns: Float[Array, "nodes slots"]
    oldest: Int[Array, " nodes"]
    """Slot of the oldest episode of each ring."""
    counts: Int[Array, " nodes"]
    alp: Float[Array, " nodes"]
    overflow: Bool[Array, ""]
    episodes: Int[Array, ""]
    key: jax.Array
    faults: Int[Array, ""]


def riac_teacher(config: RIACConfig | None = None) -> Teacher:
    """The teacher RIAC; see `RIACConfig`.

    A split is searched behind a condition. Under `vmap` that becomes a search at every episode: on CPUs map over seeds
    with `jax.lax.map`.
    """
    options = config or RIACConfig()
    return every_episode_teacher(
        init=lambda key, space: _init(key, space, options),
        sample=_sample,
        learn=lambda state, episode: _learn(state, episode.task, episode.ret, options),
        density=_log_density,
        metrics=_metrics,
        return_range=options.return_range,
    )


def _init(key: jax.Array, space: TaskSpace, options: RIACConfig) -> RIACState:
    nodes, slots, d = options.max_nodes, options.max_region_size + 1, space.dimensions
    return RIACState(
        space=space,
        low=jnp.broadcast_to(space.low, (nodes, d)),
        high=jnp.broadcast_to(space.high, (nodes, d)),
        leaf=jnp.arange(nodes) == 0,
        nodes=jnp.int32(1),
        tasks=jnp.zeros((nodes, slots, d)),
        returns=jnp.zeros((nodes, slots)),
        oldest=jnp.zeros(nodes, jnp.int32),
        counts=jnp.zeros(nodes, jnp.int32),
        alp=jnp.zeros(nodes),
        overflow=jnp.asarray(False),
        episodes=jnp.int32(0),
        key=key,
        faults=jnp.int32(0),
    )


def _node_probabilities(state: RIACState) -> Float[Array, " nodes"]:
    """In proportion to learning progress, the same for all regions where there is none."""
    there = jnp.arange(state.alp.shape[0]) < state.nodes
    total = state.alp.sum()
    return jnp.where(total > 0, state.alp / jnp.where(total > 0, total, 1), there / state.nodes)


def _sample(state: RIACState, key: jax.Array) -> tuple[Float[Array, " dim"], RIACState]:
    """10 %: the worst task of a region, mutated; 20 %: uniform; 70 %: uniform in a region."""
    mode_key, node_key, uniform_key, inside_key, noise_key = jax.random.split(key, 5)
    cumulative = jnp.cumsum(_node_probabilities(state))
    drawn = jnp.sum(cumulative <= jax.random.uniform(node_key) * cumulative[-1])
    node = jnp.minimum(drawn, state.nodes - 1)
    low, high = state.low[node], state.high[node]
    uniform = uniform_task(state.space, uniform_key)
    inside = low + (high - low) * jax.random.uniform(inside_key, low.shape)
    place = _places(state, node)
    returns = jnp.where(place < state.counts[node], state.returns[node], jnp.inf)
    worst = jnp.argmin(jnp.where(returns == returns.min(), place, returns.shape[0]))
    noise = _MUTATION_STD * jax.random.normal(noise_key, low.shape)
    found = state.tasks[node, worst]
    mode = jax.random.uniform(mode_key)

    def mutated() -> Float[Array, " dim"]:
        task = jnp.clip(found + noise, low + _INSET, high - _INSET)
        return jnp.where(state.counts[node] > 0, task, uniform)

    # A condition, which XLA cannot fuse: else it would read `found` wherever the task is used, and copy all rings.
    task = jax.lax.cond(
        mode < _MUTATION_SHARE,
        mutated,
        lambda: jnp.where(mode < _MUTATION_SHARE + _UNIFORM_SHARE, uniform, inside),
    )
    return clip_task(state.space, task), state


def _places(state: RIACState, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows slots"]:
    """Of every slot of a region its place in time, 0 for the oldest episode; empty slots come last."""
    slots = state.returns.shape[1]
    return (jnp.arange(slots) - state.oldest[nodes][..., None]) % slots


def _chronological(state: RIACState, node: Int[Array, ""]) -> Episodes:
    """The episodes of a region, the oldest first."""
    slots = state.returns.shape[1]
    slot = (state.oldest[node] + jnp.arange(slots)) % slots
    return Episodes(
        state.tasks[node, slot], state.returns[node, slot], jnp.arange(slots) < state.counts[node]
    )


class _Children(NamedTuple):
    """The two regions that a split makes, with their episodes."""

    low: Float[Array, "2 dim"]
    high: Float[Array, "2 dim"]
    tasks: Float[Array, "2 slots dim"]
    returns: Float[Array, "2 slots"]
    sizes: Int[Array, "2"]
    alp: Float[Array, "2"]
    valid: Bool[Array, ""]


def _learn(
    state: RIACState, task: Float[Array, " dim"], ret: Float[Array, ""], options: RIACConfig
) -> RIACState:
    size = state.leaf.shape[0]
    slots = state.returns.shape[1]
    inside = jnp.all((task >= state.low) & (task <= state.high), axis=1) & (jnp.arange(size) < state.nodes)
    touched = jnp.nonzero(inside, size=min(options.max_path, size), fill_value=size)[0]
    state = _insert(state, touched, task, ret)

    full = inside & state.leaf & (state.counts == slots)
    must_split = jnp.any(full)
    node = jnp.argmax(full)
    key, split_key = jax.random.split(state.key)
    room = state.nodes + 2 <= size

    # Taken outside of the condition, which would else hold a copy of all rings.
    episodes = _chronological(state, node)

    def search() -> _Children:
        return _children(split_key, episodes, state.low[node], state.high[node], state.space, options)

    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(search))
    children = jax.lax.cond(must_split & room, search, lambda: nothing)
    discard = jnp.where(must_split & ~children.valid, int(options.max_region_size * options.discard_ratio), 0)
    state = state._replace(
        key=key,
        overflow=state.overflow | (must_split & ~room) | (inside.sum() > touched.shape[0]),
        oldest=state.oldest.at[node].set((state.oldest[node] + discard) % slots),
        counts=state.counts.at[node].add(-discard),
        episodes=state.episodes + 1,
    )
    state = _add_children(state, node, children)
    known = jnp.minimum(touched, size - 1)
    progress = _progress_of_rings(
        state.returns[known], _places(state, known), state.counts[known], options.alp_window
    )
    return state._replace(alp=state.alp.at[touched].set(progress, mode="drop"))


def _progress_of_rings(
    returns: Float[Array, "rows slots"],
    places: Int[Array, "rows slots"],
    counts: Int[Array, " rows"],
    window: int,
) -> Float[Array, " rows"]:
    """`progress_of_list` of whole rings, whose later halves are known from places in time alone."""
    count = counts[:, None]
    considered = jnp.minimum(count, window)
    half = considered // 2
    later = (places >= count - half) & (places < count)
    earlier = (places >= count - considered) & (places < count - half)
    late = jnp.sum(jnp.where(later, returns, 0), 1) / jnp.maximum(half[:, 0], 1)
    early = jnp.sum(jnp.where(earlier, returns, 0), 1) / jnp.maximum((considered - half)[:, 0], 1)
    return jnp.where(counts > 2, jnp.abs(early - late), 0)


def _insert(
    state: RIACState, touched: Int[Array, " path"], task: Float[Array, " dim"], ret: Float[Array, ""]
) -> RIACState:
    """The episode joins the rings of all regions that hold its task."""
    slots = state.returns.shape[1]
    count, oldest = state.counts[touched], state.oldest[touched]
    slot = (oldest + count) % slots
    pushed_out = count == slots
    return state._replace(
        tasks=state.tasks.at[touched, slot].set(task, mode="drop"),
        returns=state.returns.at[touched, slot].set(ret, mode="drop"),
        oldest=state.oldest.at[touched].set((oldest + pushed_out) % slots, mode="drop"),
        counts=state.counts.at[touched].set(count + ~pushed_out, mode="drop"),
    )


def _children(
    key: jax.Array,
    episodes: Episodes,
    low: Float[Array, " dim"],
    high: Float[Array, " dim"],
    space: TaskSpace,
    options: RIACConfig,
) -> _Children:
    """The regions on both sides of the best split of a region."""
    split = find_split(key, episodes, low, high, space, options)
    axis = jnp.arange(space.dimensions) == split.dimension
    members = jnp.stack([split.left, episodes.valid & ~split.left])
    order = jnp.argsort(~members, axis=1, stable=True)
    progress = jax.vmap(lambda members: progress_of_list(episodes.returns, members, options.alp_window))
    return _Children(
        low=jnp.stack([low, jnp.where(axis, split.threshold, low)]),
        high=jnp.stack([jnp.where(axis, split.threshold, high), high]),
        tasks=episodes.tasks[order],
        returns=episodes.returns[order],
        sizes=members.sum(1, dtype=jnp.int32),
        alp=progress(members),
        valid=split.valid,
    )


def _add_children(state: RIACState, node: Int[Array, ""], children: _Children) -> RIACState:
    """Two new rows, if the split is valid."""
    rows = jnp.where(children.valid, state.nodes + jnp.arange(2), state.leaf.shape[0])
    return state._replace(
        low=state.low.at[rows].set(children.low, mode="drop"),
        high=state.high.at[rows].set(children.high, mode="drop"),
        leaf=state.leaf.at[rows].set(True, mode="drop").at[node].set(state.leaf[node] & ~children.valid),
        tasks=state.tasks.at[rows].set(children.tasks, mode="drop"),
        returns=state.returns.at[rows].set(children.returns, mode="drop"),
        oldest=state.oldest.at[rows].set(0, mode="drop"),
        counts=state.counts.at[rows].set(children.sizes, mode="drop"),
        alp=state.alp.at[rows].set(children.alp, mode="drop"),
        nodes=state.nodes + 2 * children.valid,
    )


def _log_density(state: RIACState, tasks: Float[Array, "m dim"]) -> Float[Array, " m"]:
    """Without the mutated tasks, whose share goes to the other two ways."""
    inside = jnp.all((tasks[:, None] >= state.low) & (tasks[:, None] <= state.high), axis=2)
    volume = jnp.prod(state.high - state.low, axis=1)
    regions = jnp.sum(inside * _node_probabilities(state) / volume, axis=1)
    uniform = _UNIFORM_SHARE / (1 - _MUTATION_SHARE)
    density = uniform * jnp.exp(uniform_log_density(state.space, tasks)) + (1 - uniform) * regions
    return jnp.log(density)


def _metrics(state: RIACState) -> dict[str, Array]:
    probabilities = _node_probabilities(state)
    return {
        "episodes": state.episodes,
        "regions": state.nodes,
        "mean_alp": state.alp.sum() / state.nodes,
        "region_entropy": jax.scipy.special.entr(probabilities).sum(),
        "overflow": state.overflow,
    }
