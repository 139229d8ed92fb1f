"""GoalGAN: tasks from a generative network that learns to make those of intermediate difficulty.

Reference: Florensa et al., "Automatic Goal Generation for Reinforcement Learning Agents", arXiv:1705.06366, sections 4
and 5; the options and quirks are those of its copy in TeachMyAgent, arXiv:2103.09815.

The networks are trained after every so many labelled tasks, an episode that differs between seeds. The training is a
loop of no or many turns, so that under `vmap` it runs only when it is due for one of the seeds, but then for all.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxlab.errors import InputError
from jaxlab.teachers.dense_layers import Dense, init_layers, perceptron
from jaxlab.teachers.kernel_density import kernel_log_density
from jaxlab.teachers.protocol import Episode, Teacher, every_episode_teacher
from jaxlab.teachers.spaces import TaskGaussian, TaskSpace, check_gaussian, clip_task, gaussian_task
from jaxlab.teachers.waiting_tasks import oldest_waiting

_DENSITY_DRAWS = 256


@dataclasses.dataclass(frozen=True)
class GoalGANConfig:
    """Options of GoalGAN, by default TeachMyAgent's."""

    noise: float = 0.01
    """Standard deviation of the noise on generated and repeated tasks, in shares of the extent."""
    archive_distance: float = 0.01
    """A mastered task is archived if it is farther than this from all others, in shares of the extent's norm."""
    update_size: int = 100
    """Labelled tasks between trainings, which see as many."""
    rollouts: int = 2
    """Episodes of a task before it is labelled."""
    easiest: float = 0.75
    """Greatest mean success of a task of intermediate difficulty; a task above is mastered."""
    hardest: float = 0.25
    """Least mean success of a task of intermediate difficulty."""
    old_probability: float = 0.2
    """Share of archived tasks among new ones."""
    output_range: Literal["reference", "box"] = "reference"
    """What the generator's tanh covers: twice the box, of which the outer half is clipped, or exactly the box."""
    discriminator_leak: float = 0.1
    """Slope of the discriminator's leaky ReLU below 0."""
    iterations: int = 250
    """Steps of both networks in a training."""
    pretrain_iterations: int = 500
    """The same before the first episode, on `pretrain_samples` tasks of `initial`."""
    pretrain_samples: int = 1000
    batch: int = 64
    """Generated tasks, and at most so many labelled ones, in a step."""
    learning_rate: float = 1e-3
    generator_hidden: tuple[int, ...] = (256, 256)
    discriminator_hidden: tuple[int, ...] = (128, 128)
    archive: int = 4096
    """Mastered tasks that are kept; a further one replaces the oldest. The reference keeps all."""
    pending: int = 256
    """Tasks that wait for their label; a further one replaces the oldest. The reference keeps all."""
    success_return: float | None = 230.0
    """To `update`, an episode with a return above this is a success."""
    initial: TaskGaussian | None = None
    """The generator is pretrained on easy tasks from here (expert knowledge "high")."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("update_size", "rollouts", "iterations", "batch", "archive", "pending"), 1)
        for name, bound in {**least, "pretrain_iterations": 1, "pretrain_samples": 1}.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} is {getattr(self, name)}; it must be >= {bound}")
        for name in ("noise", "archive_distance", "discriminator_leak"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be >= 0")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate is {self.learning_rate}; it must be > 0")
        if not 0 <= self.hardest <= self.easiest <= 1:
            raise InputError(
                f"hardest is {self.hardest}, easiest is {self.easiest}; "
                "they must lie in [0, 1], hardest <= easiest"
            )
        if not 0 <= self.old_probability <= 1:
            raise InputError(f"old_probability is {self.old_probability}; it must lie in [0, 1]")
        if self.output_range not in ("reference", "box"):
            raise InputError(f"output_range is {self.output_range!r}; it must be 'reference' or 'box'")


class GANState(NamedTuple):
    """Two networks and their optimisers."""

    generator: tuple[Dense, ...]
    discriminator: tuple[Dense, ...]
    generator_moments: optax.OptState
    discriminator_moments: optax.OptState
    losses: Float[Array, "2"]
    """Of discriminator and generator in the last step."""


class GoalGANState(NamedTuple):
    """The networks, and the tasks that wait, are labelled or are mastered."""

    space: TaskSpace
    gan: GANState
    archive: Float[Array, "archive dim"]
    archived: Int[Array, ""]
    """Tasks ever archived."""
    pending: Float[Array, "pending dim"]
    successes: Int[Array, " pending"]
    trials: Int[Array, " pending"]
    ticket: Int[Array, " pending"]
    """Order in which the waiting tasks were drawn, from 1; 0 marks a free row."""
    tickets: Int[Array, ""]
    """Tasks ever drawn from the generator."""
    repeat: Float[Array, " dim"]
    repeats: Int[Array, ""]
    """How often `repeat` is still to be played before a new task is drawn."""
    labelled: Float[Array, "update_size dim"]
    labels: Bool[Array, " update_size"]
    """Whether a labelled task is of intermediate difficulty."""
    labelled_tasks: Int[Array, ""]
    """Rows of `labelled` in use."""
    trainings: Int[Array, ""]
    episodes: Int[Array, ""]
    key: jax.Array
    faults: Int[Array, ""]


def goal_gan_teacher(config: GoalGANConfig | None = None) -> Teacher:
    """The teacher GoalGAN; see `GoalGANConfig`."""
    options = config or GoalGANConfig()

    def init(key: jax.Array, space: TaskSpace) -> GoalGANState:
        check_gaussian(space, options.initial)
        d = space.dimensions
        gan_key, sample_key, train_key, key = jax.random.split(key, 4)
        gan = init_gan(gan_key, d, options)
        initial = options.initial
        if initial is not None:
            easy = jax.vmap(lambda key: gaussian_task(space, initial, key))(
                jax.random.split(sample_key, options.pretrain_samples)
            )
            labels = jnp.ones(options.pretrain_samples)
            rows = normalised(space, easy, options)
            gan = train_gan(train_key, gan, rows, labels, options.pretrain_iterations, options)
        return GoalGANState(
            space=space,
            gan=gan,
            archive=jnp.zeros((options.archive, d)),
            archived=jnp.int32(0),
            pending=jnp.zeros((options.pending, d)),
            successes=jnp.zeros(options.pending, jnp.int32),
            trials=jnp.zeros(options.pending, jnp.int32),
            ticket=jnp.zeros(options.pending, jnp.int32),
            tickets=jnp.int32(0),
            repeat=jnp.zeros(d),
            repeats=jnp.int32(0),
            labelled=jnp.zeros((options.update_size, d)),
            labels=jnp.zeros(options.update_size, bool),
            labelled_tasks=jnp.int32(0),
            trainings=jnp.int32(0),
            episodes=jnp.int32(0),
            key=key,
            faults=jnp.int32(0),
        )

    def sample(state: GoalGANState, key: jax.Array) -> tuple[Float[Array, " dim"], GoalGANState]:
        latent_key, noise_key, old_key, row_key = jax.random.split(key, 4)
        space, d = state.space, state.space.dimensions
        size = jnp.minimum(state.archived, options.archive)
        repeated = state.repeats > 0
        old = (jax.random.uniform(old_key) < options.old_probability) & (size > 0)
        row = jax.random.randint(row_key, (), 0, jnp.maximum(size, 1))
        latent = jax.random.normal(latent_key, (d,))
        made = denormalised(space, generate(state.gan.generator, latent), options)
        noise = options.noise * space.extent * jax.random.normal(noise_key, (d,))
        drawn = clip_task(space, jnp.where(old, state.archive[row], made) + noise)
        new = ~repeated & ~old
        free = jnp.where(new, jnp.argmin(state.ticket), options.pending)
        tickets = state.tickets + new
        state = state._replace(
            pending=state.pending.at[free].set(drawn, mode="drop"),
            successes=state.successes.at[free].set(0, mode="drop"),
            trials=state.trials.at[free].set(0, mode="drop"),
            ticket=state.ticket.at[free].set(tickets, mode="drop"),
            tickets=tickets,
            repeat=jnp.where(new, drawn, state.repeat),
            repeats=jnp.where(new, options.rollouts - 1, state.repeats - repeated),
        )
        return jnp.where(repeated, state.repeat, drawn), state

    def learn(state: GoalGANState, episode: Episode) -> GoalGANState:
        state = _labelled(state._replace(episodes=state.episodes + 1), episode, options)
        full = state.labelled_tasks == options.update_size
        worth = full & jnp.any(state.labels)
        rows = normalised(state.space, state.labelled, options)
        key = jax.random.fold_in(state.key, state.trainings)
        turns = jnp.where(worth, options.iterations, 0)
        return state._replace(
            gan=train_gan(key, state.gan, rows, state.labels.astype(rows.dtype), turns, options),
            labelled_tasks=jnp.where(full, 0, state.labelled_tasks),
            trainings=state.trainings + worth,
        )

    def density(state: GoalGANState, tasks: Float[Array, "m dim"]) -> Float[Array, " m"]:
        """That of new tasks, estimated with 256 draws of the generator; each is the centre of a Gaussian."""
        space = state.space
        latents = jax.random.normal(jax.random.key(0), (_DENSITY_DRAWS, space.dimensions))
        made = denormalised(space, generate(state.gan.generator, latents), options)
        std = options.noise * space.extent
        there = jnp.arange(options.archive) < state.archived
        old = options.old_probability * (state.archived > 0)
        return jnp.logaddexp(
            jnp.log1p(-old) + kernel_log_density(tasks, made, jnp.ones(_DENSITY_DRAWS), std),
            jnp.log(old) + kernel_log_density(tasks, state.archive, there.astype(jnp.float32), std),
        )

    def metrics(state: GoalGANState) -> dict[str, Array]:
        seen = jnp.arange(options.update_size) < state.labelled_tasks
        return {
            "episodes": state.episodes,
            "trainings": state.trainings,
            "archived": jnp.minimum(state.archived, options.archive),
            "pending": jnp.sum(state.ticket > 0),
            "intermediate_share": jnp.sum(seen & state.labels) / jnp.maximum(state.labelled_tasks, 1),
            "discriminator_loss": state.gan.losses[0],
            "generator_loss": state.gan.losses[1],
        }

    return every_episode_teacher(
        init=init,
        sample=sample,
        learn=learn,
        density=density,
        metrics=metrics,
        success_return=options.success_return,
    )


def normalised(
    space: TaskSpace, tasks: Float[Array, "*batch dim"], options: GoalGANConfig
) -> Float[Array, "*batch dim"]:
    """Tasks as the networks see them: from -1/2 to 1/2 over the box ("reference"), or from -1 to 1 ("box")."""
    unit = space.extent if options.output_range == "reference" else space.extent / 2
    return (tasks - (space.low + space.high) / 2) / unit


def denormalised(
    space: TaskSpace, rows: Float[Array, "*batch dim"], options: GoalGANConfig
) -> Float[Array, "*batch dim"]:
    """The inverse of `normalised`, not clipped."""
    unit = space.extent if options.output_range == "reference" else space.extent / 2
    return (space.low + space.high) / 2 + rows * unit


def generate(generator: tuple[Dense, ...], latent: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """The generator's normalised tasks, in (-1, 1)."""
    return jnp.tanh(perceptron(generator, latent, activation=jax.nn.relu))


def init_gan(key: jax.Array, dimensions: int, options: GoalGANConfig) -> GANState:
    """Networks after Glorot and Bengio, biases 0."""
    generator_key, discriminator_key = jax.random.split(key)
    glorot = jax.nn.initializers.glorot_uniform()
    sizes = (dimensions, *options.generator_hidden, dimensions)
    generator = init_layers(generator_key, sizes, initializer=glorot)
    sizes = (dimensions, *options.discriminator_hidden, 1)
    discriminator = init_layers(discriminator_key, sizes, initializer=glorot)
    optimizer = _optimizer(options)
    return GANState(
        generator, discriminator, optimizer.init(generator), optimizer.init(discriminator), jnp.zeros(2)
    )


def train_gan(
    key: jax.Array,
    gan: GANState,
    rows: Float[Array, "n dim"],
    labels: Float[Array, " n"],
    iterations: Int[Array, ""] | int,
    options: GoalGANConfig,
) -> GANState:
    """So many steps of both networks, the labelled tasks in turn: least-squares GAN with labels.

    The discriminator lowers the mean of (2 label - 1 - D)^2 over labelled tasks and as many generated ones of label 0,
    the generator then (D(G(z)) - 1)^2 of the same z. Reference: arXiv:1705.06366, equations 5 and 6 with a = -1 and
    b = c = 1.

    Args:
      key: PRNG key.
      gan: before.
      rows: normalised tasks.
      labels: 0 or 1.
      iterations: >= 0.
      options: see `GoalGANConfig`.
    """
    n = rows.shape[0]
    optimizer = _optimizer(options)

    def judge(discriminator: tuple[Dense, ...], tasks: Float[Array, "m dim"]) -> Float[Array, " m"]:
        return perceptron(
            discriminator, tasks, activation=lambda x: jnp.maximum(options.discriminator_leak * x, x)
        )[:, 0]

    def step(i: Int[Array, ""], gan: GANState) -> GANState:
        shown = (i * options.batch + jnp.arange(min(options.batch, n))) % n
        latent = jax.random.normal(jax.random.fold_in(key, i), (options.batch, rows.shape[1]), rows.dtype)
        tasks = jnp.concatenate([rows[shown], generate(gan.generator, latent)])
        aims = jnp.concatenate([2 * labels[shown] - 1, -jnp.ones(options.batch, rows.dtype)])

        def discriminator_loss(discriminator: tuple[Dense, ...]) -> Float[Array, ""]:
            return jnp.mean((aims - judge(discriminator, tasks)) ** 2)

        loss, slope = jax.value_and_grad(discriminator_loss)(gan.discriminator)
        change, discriminator_moments = optimizer.update(slope, gan.discriminator_moments)
        discriminator = optax.apply_updates(gan.discriminator, change)

        def generator_loss(generator: tuple[Dense, ...]) -> Float[Array, ""]:
            return jnp.mean((judge(discriminator, generate(generator, latent)) - 1) ** 2)

        generator_value, slope = jax.value_and_grad(generator_loss)(gan.generator)
        change, generator_moments = optimizer.update(slope, gan.generator_moments)
        generator = optax.apply_updates(gan.generator, change)
        losses = jnp.stack([loss, generator_value])
        return GANState(generator, discriminator, generator_moments, discriminator_moments, losses)

    return jax.lax.fori_loop(0, iterations, step, gan)


def _optimizer(options: GoalGANConfig) -> optax.GradientTransformation:
    """RMSProp as TensorFlow 1 has it: moments start at 1, and epsilon stands under the root."""
    return optax.rmsprop(options.learning_rate, decay=0.9, eps=1e-10, initial_scale=1.0, eps_in_sqrt=True)


def _labelled(state: GoalGANState, episode: Episode, options: GoalGANConfig) -> GoalGANState:
    """Counts the episode for the oldest waiting copy of its task, and labels the task with its last one."""
    waiting, row = oldest_waiting(state.space, state.pending, state.ticket, episode.task)
    trials = state.trials[row] + 1
    successes = state.successes[row] + episode.success
    done = waiting & (trials >= options.rollouts)
    mean = successes / trials
    counted = jnp.where(waiting, row, options.pending)
    label = jnp.where(done, state.labelled_tasks, options.update_size)
    size = jnp.minimum(state.archived, options.archive)
    distance = jnp.linalg.norm(state.archive - episode.task, axis=1)
    nearest = jnp.min(jnp.where(jnp.arange(options.archive) < size, distance, jnp.inf))
    apart = nearest > options.archive_distance * jnp.linalg.norm(state.space.extent)
    archived = done & (mean > options.easiest) & apart
    slot = jnp.where(archived, state.archived % options.archive, options.archive)
    return state._replace(
        trials=state.trials.at[counted].set(trials, mode="drop"),
        successes=state.successes.at[counted].set(successes, mode="drop"),
        ticket=state.ticket.at[jnp.where(done, row, options.pending)].set(0, mode="drop"),
        labelled=state.labelled.at[label].set(episode.task, mode="drop"),
        labels=state.labels.at[label].set((mean >= options.hardest) & (mean <= options.easiest), mode="drop"),
        labelled_tasks=state.labelled_tasks + done,
        archive=state.archive.at[slot].set(episode.task, mode="drop"),
        archived=state.archived + archived,
    )
