"""Finds the ground state of a molecule with a variational quantum circuit, beside Hartree-Fock and the exact energy.

The molecule becomes a sum of Pauli words, a circuit with parameters makes a state from the Hartree-Fock state, and its
energy is minimised by exact gradients until they vanish. With several bond lengths all geometries are optimised
together in one compiled program, and the dissociation curve is drawn. All of it is in double precision.
"""

import csv
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxlab.errors import InputError
from jaxlab.files import atomic_file
from jaxlab.progress import Progress
from jaxlab.quantum.ansatze import Ansatz, all_singles_doubles, hardware_efficient, uccsd
from jaxlab.quantum.molecules import MOLECULES, Molecule, geometry, molecule
from jaxlab.quantum.optimizers import qng, rotosolve
from jaxlab.quantum.pauli_sums import PauliSum, PauliTables, expval, prepare, stack, words
from jaxlab.recipes.options import require_at_least, require_positive
from jaxlab.runs import RunFolder

CHEMICAL_ACCURACY = 1.6e-3
"""Hartree; 1 kcal/mol."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the vqe recipe."""

    molecule: str = "LiH"
    """Which one: H2, H4, H6, H8 (chains), LiH, BeH2, H2O or N2."""
    bond: float | None = None
    """Length of its bonds in angstrom; None is near equilibrium."""
    scan: str = ""
    """Several lengths in angstrom, such as 0.8,1.0,1.5: the dissociation curve, instead of `bond`."""
    basis: str = "sto-3g"
    """Basis set, by pyscf's name."""
    frozen: int = 0
    """Lowest orbitals that stay doubly occupied; each saves two wires."""
    ansatz: Literal["uccsd", "all_singles_doubles", "hardware_efficient"] = "uccsd"
    """The circuit: unitary coupled cluster, Givens rotations of the same excitations, or layers of RY, RZ and CNOTs."""
    layers: int = 8
    """Layers of hardware_efficient."""
    optimizer: Literal["lbfgs", "adam", "qng", "rotosolve"] = "lbfgs"
    """How the energy is minimised: L-BFGS with a line search, Adam, the quantum natural gradient, or angle by angle
    (rotosolve, for hardware_efficient)."""
    learning_rate: float | None = None
    """Of adam (None is 0.02) and qng (None is 0.25)."""
    steps: int = 200
    """Most steps of the optimizer; of rotosolve, passes over all angles."""
    tolerance: float = 1e-5
    """Gradient norm in hartree per radian at which a geometry is done."""
    seed: int = 0
    """Seed of the small angles that hardware_efficient starts with."""

    def __post_init__(self) -> None:
        """Raises InputError where a value is out of range."""
        require_at_least(self, layers=1, steps=1, frozen=0, tolerance=0)
        if self.learning_rate is not None:
            require_positive(self, "learning_rate")
            if self.optimizer not in _LEARNING_RATES:
                raise InputError(
                    f"learning_rate is {self.learning_rate}, but {self.optimizer} has none; leave it out"
                )
        if self.optimizer == "rotosolve" and self.ansatz != "hardware_efficient":
            raise InputError(
                f"optimizer is rotosolve, which needs gates with one frequency, and {self.ansatz} has others; choose "
                "hardware_efficient, or another optimizer"
            )
        if self.molecule not in MOLECULES:
            raise InputError(f"molecule is {self.molecule!r}; there are {', '.join(MOLECULES)}")
        if self.scan and self.bond is not None:
            raise InputError(f"bond is {self.bond} and scan is {self.scan!r}; give one of them")
        for bond in self.bonds():
            geometry(self.molecule, bond=bond)

    def bonds(self) -> list[float | None]:
        """The lengths of all geometries, ascending."""
        if not self.scan:
            return [self.bond]
        try:
            return [*sorted({float(part) for part in self.scan.split(",")})]
        except ValueError as error:
            raise InputError(
                f"scan is {self.scan!r}; it must be lengths with commas between them, such as 0.8,1.0"
            ) from error


PRESETS = {
    "smoke": Config(molecule="H2"),
    "cpu": Config(),
    "gpu": Config(molecule="H2O"),
}

_LEARNING_RATES = {"adam": 0.02, "qng": 0.25}
_SPREAD = 0.05  # of the angles that hardware_efficient starts with
_METRIC_SHIFT = 1e-4
_SECONDS_BETWEEN_CHECKPOINTS = 5.0

Operator = PauliSum | PauliTables


class _Problem(NamedTuple):
    """What is minimised; G geometries."""

    molecules: list[Molecule]
    ansatz: Ansatz
    operator: Operator
    """Of several geometries a sum with coefficients [G, M, T]."""
    start: Float[np.ndarray, "G ..."]

    def exact(self) -> Float[np.ndarray, " G"]:
        """Energies of full configuration interaction; nan where they are not known."""
        return np.array([math.nan if m.fci_energy is None else m.fci_energy for m in self.molecules])


class _Point(NamedTuple):
    """Of each geometry its parameters, the optimizer's state, and whether it has arrived."""

    params: Float[Array, "G ..."]
    state: Any
    done: Array


def run(
    config: Config,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Does the run, or goes on with it after its last checkpoint, and returns its summary.

    Args:
      config: the options.
      out: run folder; None is `runs/vqe-TIMESTAMP`.
      resume: go on with the run in `out` (see `jaxlab.runs.RunFolder`).
      progress: where to show how far it is; None shows nothing.

    Returns:
      The summary: energies in hartree, errors, steps, seconds.

    Raises:
      InputError: an option cannot be used.
      ResourceError: pyscf is missing, or the disk failed.
    """
    progress = progress or Progress(quiet=True)
    with RunFolder(out, config, resume, system="vqe") as folder, jax.enable_x64(True):
        if folder.summary is not None:
            return folder.summary
        with progress.stage(f"{config.molecule} in {config.basis}"):
            problem = _problem(config)
        params = _minimise(config, problem, folder, progress)
        rows = folder.metrics()
        with atomic_file(folder.artefact("parameters.npz")) as temporary, open(temporary, "wb") as file:
            np.savez(file, params=params)
        _history(folder, rows)
        _figures(config, problem, folder, rows)
        return folder.finish(_summary(config, problem, rows))


def table(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that the command line prints at the end."""
    rows = []
    for bond, hf, fci, energy, error in zip(
        *(summary[key] for key in ("bonds", "hf_energies", "fci_energies", "energies", "errors")), strict=True
    ):
        rows.append(
            {
                "molecule": summary["molecule"] + ("" if bond is None else f", {bond:g} A"),
                "Hartree-Fock": f"{hf:.6f}",
                "exact": "" if fci is None else f"{fci:.6f}",
                summary["ansatz"]: f"{energy:.6f}",
                "error (mHa)": "" if error is None else f"{1e3 * error:.4f}",
            }
        )
    return rows


def _problem(config: Config) -> _Problem:
    molecules = [
        molecule(config.molecule, bond=bond, basis=config.basis, frozen=config.frozen)
        for bond in config.bonds()
    ]
    first = molecules[0]
    orbitals = len(first.one_body)
    if config.ansatz == "hardware_efficient":
        ansatz = hardware_efficient(2 * orbitals, config.layers)
        start = _start_of_layers(first.hf_bits, config)
    else:
        ansatz = (uccsd if config.ansatz == "uccsd" else all_singles_doubles)(orbitals, first.electrons)
        start = np.zeros(ansatz.shape)
    sums = [one.hamiltonian for one in molecules]
    operator = prepare(sums[0]) if len(sums) == 1 else stack(sums)
    return _Problem(molecules, ansatz, operator, np.repeat(start[None], len(molecules), axis=0))


def _start_of_layers(hf_bits: tuple[int, ...], config: Config) -> Float[np.ndarray, "layers n 2"]:
    """Small random angles around those that lead to the Hartree-Fock state: half turns that all chains of CNOTs map to
    it.
    """
    bits = np.array(hf_bits)
    for _ in range(config.layers):
        bits[1:] ^= bits[:-1].copy()
    shape = (config.layers, len(bits), 2)
    start = _SPREAD * np.random.default_rng(config.seed).standard_normal(shape)
    start[0, :, 0] += math.pi * bits
    return start


def _minimise(
    config: Config, problem: _Problem, folder: RunFolder, progress: Progress
) -> Float[np.ndarray, "G ..."]:
    """Logs energies at the parameters of every step, 0 first, and returns the parameters of the last one."""
    begin, advance = _steps(config, problem)
    params = jnp.asarray(problem.start)
    point = _Point(params, begin(problem.operator, params), jnp.zeros(len(params), bool))
    restored = folder.restore_leaves(like=point)
    first = 0
    if restored is not None:
        first = restored.step + 1
        point = jax.tree.map(jnp.asarray, restored.tree)
    exact = problem.exact()
    saved = time.monotonic()
    with progress.stage(config.optimizer, config.steps, unit="steps") as stage:
        stage.skip(max(first - 1, 0))
        for step in range(first, config.steps + 1):
            following, energies, norms = advance(problem.operator, point)
            errors = np.asarray(energies) - exact
            folder.log(step=step, energies=energies, gradient_norms=norms, errors=errors)
            stage.advance(
                1 if step else 0,
                energy=f"{float(energies[np.argmax(errors)]):.6f}",
                gradient=f"{float(norms.max()):.1e}",
                error=f"{np.max(errors):.1e}",
            )
            if bool(following.done.all()) or step == config.steps:
                break
            point = following
            if time.monotonic() - saved >= _SECONDS_BETWEEN_CHECKPOINTS:
                folder.checkpoint_leaves(step, point)
                saved = time.monotonic()
    return np.asarray(point.params)


def _steps(config: Config, problem: _Problem) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The optimizer's first state of all geometries, and one compiled step of all of them."""
    ansatz = problem.ansatz

    @jax.jit
    def energy(operator: Operator, params: Array) -> Array:
        return expval(ansatz.state(params), operator)

    def begin(operator: Operator, params: Array) -> Any:
        return _optimizer(config, ansatz, lambda x: energy(operator, x)).init(params)

    def advance(operator: Operator, point: _Point) -> tuple[_Point, Array, Array]:
        def loss(params: Array) -> Array:
            return energy(operator, params)

        value, gradient = jax.value_and_grad(loss)(point.params)
        norm = jnp.linalg.norm(gradient)
        optimizer = _optimizer(config, ansatz, loss)
        updates, state = optimizer.update(
            gradient, point.state, point.params, value=value, grad=gradient, value_fn=loss
        )
        done = point.done | (norm <= config.tolerance)
        moved = _Point(optax.apply_updates(point.params, updates), state, done)
        return (
            jax.tree.map(lambda new, old: jnp.where(done, old, new), moved, point._replace(done=done)),
            value,
            norm,
        )

    if isinstance(problem.operator, PauliTables) or np.ndim(problem.operator.c) == 2:
        return _alone(begin), jax.jit(_alone(advance))
    stacked: Any = problem.operator
    axes = dataclasses.replace(stacked, x=None, z=None, c=0)
    return jax.vmap(begin, (axes, 0)), jax.jit(jax.vmap(advance, (axes, 0)))


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a leading axis of length 1, on all but the operator; without `vmap` it is faster."""

    def run_one(operator: Operator, *batched: Any) -> Any:
        found = function(operator, *jax.tree.map(lambda leaf: leaf[0], batched))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], found)

    return run_one


def _optimizer(
    config: Config, ansatz: Ansatz, loss: Callable[[Array], Array]
) -> optax.GradientTransformationExtraArgs:
    if config.optimizer == "lbfgs":
        return optax.lbfgs()
    if config.optimizer == "rotosolve":
        return rotosolve(loss)
    rate = config.learning_rate or _LEARNING_RATES[config.optimizer]
    if config.optimizer == "adam":
        return optax.with_extra_args_support(optax.adam(rate))
    return qng(
        lambda params: ansatz.state(params, diff="backprop"),
        rate,
        lam=_METRIC_SHIFT,
        approx="block-diag" if len(ansatz.shape) > 1 else None,
    )


def _summary(config: Config, problem: _Problem, rows: list[dict[str, Any]]) -> dict[str, Any]:
    last, exact = rows[-1], problem.exact()
    energies = np.array(last["energies"])
    errors = energies - exact
    near = [row for row in rows if np.max(np.array(row["energies"]) - exact) <= CHEMICAL_ACCURACY]
    first = problem.molecules[0]
    summary: dict[str, Any] = {
        "molecule": config.molecule,
        "basis": config.basis,
        "ansatz": config.ansatz,
        "optimizer": config.optimizer,
        "wires": first.hamiltonian.n,
        "words": len(words(first.hamiltonian)),
        "parameters": math.prod(problem.ansatz.shape),
        "bonds": config.bonds(),
        "hf_energies": [one.hf_energy for one in problem.molecules],
        "fci_energies": exact,
        "energies": energies,
        "errors": errors,
        "max_error": float(np.max(errors)),
        "gradient_norm": max(last["gradient_norms"]),
        "steps": last["step"],
        "converged": max(last["gradient_norms"]) <= config.tolerance,
        "chemically_accurate": bool(np.max(errors) <= CHEMICAL_ACCURACY),
        "steps_to_chemical_accuracy": near[0]["step"] if near else None,
        "seconds_to_chemical_accuracy": near[0]["seconds"] if near else None,
    }
    return summary


def _history(folder: RunFolder, rows: list[dict[str, Any]]) -> None:
    """A line a step and geometry, for spreadsheets."""
    with atomic_file(folder.artefact("history.csv")) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "geometry", "energy", "gradient_norm", "error"])
        for row in rows:
            columns = zip(row["energies"], row["gradient_norms"], row["errors"], strict=True)
            for index, (energy, norm, error) in enumerate(columns):
                writer.writerow([row["step"], index, energy, norm, error])


def _figures(config: Config, problem: _Problem, folder: RunFolder, rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    title = f"{config.molecule}, {config.basis}, {config.ansatz}, {config.optimizer}"
    exact = problem.exact()
    bonds: list[Any] = [*config.bonds()]
    energies = np.array([row["energies"] for row in rows])
    reference = np.where(np.isnan(exact), energies.min(axis=0), exact)
    figure, axes = plt.subplots(figsize=(6, 4))
    for index, bond in enumerate(bonds):
        label = None if bond is None else f"{bond:g} A"
        error = np.maximum(np.abs(energies[:, index] - reference[index]), 1e-12)
        axes.semilogy([row["step"] for row in rows], error, label=label)
    axes.axhline(CHEMICAL_ACCURACY, color="grey", linestyle="--", label="chemical accuracy")
    axes.set(xlabel="step", ylabel="error of the energy (hartree)", title=title)
    axes.legend()
    folder.save_figure("error", figure)
    plt.close(figure)

    if len(bonds) > 1:
        figure, axes = plt.subplots(figsize=(6, 4))
        axes.plot(bonds, [one.hf_energy for one in problem.molecules], "--", label="Hartree-Fock")
        axes.plot(bonds, exact, "-", label="exact")
        axes.plot(bonds, energies[-1], "o", label=config.ansatz)
        axes.set(xlabel="bond (angstrom)", ylabel="energy (hartree)", title=title)
        axes.legend()
        axes.grid(alpha=0.3)
        folder.save_figure("dissociation", figure)
        plt.close(figure)
