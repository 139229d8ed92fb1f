"""Sums of Pauli words: built from text, PennyLane or OpenFermion; applied and measured without a matrix.

Which words a sum has is settled outside of `jit`, where sums are built and added. Their coefficients may be traced, and
everything is differentiable in them.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from jaxlab.errors import InputError
from jaxlab.kernels.statevector import pauli_sum as kernel

MOST_WIRES = 30
"""A mask and the index of an amplitude are int32."""

_FEWEST_X_WORDS = 6
"""Words of X alone that are worth a Hadamard gate on every wire, and another one behind."""

_KNOWN_WIRES = 13
"""Up to here diagonals of known coefficients are constants of the program, 64 KB each at most."""

_Operator: TypeAlias = kernel.Words | kernel.Tables | kernel.Split

Term: TypeAlias = tuple[Any, str, Sequence[int]]
"""Coefficient, letters of IXYZ, and the wire of each letter."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=("x", "z", "c"), meta_fields=("n",))
@dataclasses.dataclass(frozen=True, eq=False)
class PauliSum:
    """Sum of c[m, t] times the Pauli word with X or Y on the wires of x[m], Z or Y on those of z[m, t].

    Bit n - 1 - w of a mask is wire w. The words of a row have equal x and the same parity of the number of Y; a row
    holds at most 8 (padding: c = 0), so several rows may have one x. Leaves are NumPy arrays in double precision
    until the sum is used in `jit`, which takes its own precision. Sums add, and multiply with numbers.
    """

    x: Int[Array, " M"] | np.ndarray
    z: Int[Array, "M T"] | np.ndarray
    c: Float[Array, "M T"] | Complex[Array, "M T"] | np.ndarray
    n: int

    __array_ufunc__ = None  # np.float64(2) * sum is ours to answer

    def __add__(self, other: "PauliSum") -> "PauliSum":
        if not isinstance(other, PauliSum):
            return NotImplemented
        if self.n != other.n:
            raise InputError(f"sums are on {self.n} and {other.n} wires; give both the same n")
        first, second = all_terms(self), all_terms(other)
        numpy = isinstance(first.c, np.ndarray) and isinstance(second.c, np.ndarray)
        c = (np if numpy else jnp).concatenate([first.c, second.c])
        return _grouped(np.append(first.x, second.x), np.append(first.z, second.z), c, self.n)

    def __sub__(self, other: "PauliSum") -> "PauliSum":
        return self + -other

    def __neg__(self) -> "PauliSum":
        return -1 * self

    def __mul__(self, factor: Any) -> "PauliSum":
        if isinstance(factor, PauliSum):
            return NotImplemented
        if np.ndim(factor):
            raise InputError(f"factor has shape {np.shape(factor)}; it must be a number (vmap for batches)")
        return dataclasses.replace(self, c=self.c * factor)

    __rmul__ = __mul__


class PauliTables(NamedTuple):
    """A sum with its diagonals made, see `prepare`: [M], [M] and [M, 2^n]."""

    x: Int[Array, " M"]
    odd: Array
    values: Float[Array, "M 2^n"] | Complex[Array, "M 2^n"]


def pauli_sum(terms: Mapping[str, Any] | Iterable[Term], n: int | None = None) -> PauliSum:
    """A sum from its words.

    Args:
      terms: {"XIZ": 0.5, ...} with a letter a wire, or [(0.5, "XZ", (0, 2)), ...]. Coefficients are numbers or (also
        traced) scalars; equal words are merged.
      n: wires; None is the length of the words, or the largest wire and one more.

    Raises:
      InputError: unknown letter, wire out of range or twice in a word, words of different lengths, no terms, a
        coefficient that is an array, or more than 30 wires.
    """
    if isinstance(terms, Mapping):
        listed: list[Term] = [(c, word, range(len(word))) for word, c in terms.items()]
        lengths = {len(word) for word in terms}
        if len(lengths) > 1:
            raise InputError(
                f"words have lengths {sorted(lengths)}; all need a letter (also I) for every wire"
            )
        if n is not None and lengths and lengths != {n}:
            raise InputError(f"words have length {lengths.pop()}; n is {n}")
    else:
        listed = [(c, word, tuple(wires)) for c, word, wires in terms]
    if not listed:
        raise InputError("terms is empty; the zero sum is {'I' * n: 0.0}")
    used = [_checked_word(word, wires, n) for _, word, wires in listed]
    if n is None:
        n = max(max(wires, default=0) for wires in used) + 1
    if not 1 <= n <= MOST_WIRES:
        raise InputError(f"the sum has {n} wires; there may be 1 to {MOST_WIRES}")
    x, z = np.zeros(len(listed), np.int64), np.zeros(len(listed), np.int64)
    for i, (_, word, wires) in enumerate(listed):
        for letter, wire in zip(word, wires, strict=True):
            bit = 1 << (n - 1 - wire)
            x[i] |= bit * (letter in "XY")
            z[i] |= bit * (letter in "YZ")
    return _grouped(x, z, _coefficients([c for c, _, _ in listed]), n)


def from_masks(x: Int[np.ndarray, " t"], z: Int[np.ndarray, " t"], c: Any, n: int) -> PauliSum:
    """A sum from one pair of masks and one coefficient a word; equal words are merged.

    Args:
      x: wires with X or Y; bit n - 1 - w is wire w.
      z: wires with Z or Y.
      c: real or complex [t], also traced.
      n: wires, 1 to 30.

    Raises:
      InputError: shapes differ, a mask has other bits, or n is out of range.
    """
    x, z = np.asarray(x, np.int64), np.asarray(z, np.int64)
    if not (x.ndim == 1 and len(x) and x.shape == z.shape == np.shape(c)):
        raise InputError(
            f"x, z and c have shapes {x.shape}, {z.shape}, {np.shape(c)}; all must be (t,), t > 0"
        )
    if not 1 <= n <= MOST_WIRES:
        raise InputError(f"n is {n}; it must lie between 1 and {MOST_WIRES}")
    if (x | z).min() < 0 or (x | z).max() >> n:
        raise InputError(
            f"a mask has bits beyond wire 0 of {n} wires; all must lie between 0 and {(1 << n) - 1}"
        )
    if not isinstance(c, jax.Array):
        c = np.asarray(c)
        c = c.astype(np.promote_types(c.dtype, np.float64))
    return _grouped(x, z, c, n)


def from_openfermion(operator: Any, n: int | None = None) -> PauliSum:
    """The sum of an OpenFermion `QubitOperator`; its qubit q is wire q.

    Raises:
      InputError: it has no Pauli terms, or see `pauli_sum`.
    """
    terms = getattr(operator, "terms", None)
    if not isinstance(terms, dict):
        raise InputError(f"operator is a {type(operator).__name__}; it must be an openfermion.QubitOperator")
    listed: list[Term] = []
    for factors, c in terms.items():
        if not all(isinstance(letter, str) for _, letter in factors):
            raise InputError(
                "operator has ladder operators; transform it first: openfermion.jordan_wigner(operator)"
            )
        listed.append((c, "".join(letter for _, letter in factors), [wire for wire, _ in factors]))
    return pauli_sum(listed or [(0.0, "", ())], n)


def from_pennylane(operator: Any, *, wires: Sequence[Any] | None = None, n: int | None = None) -> PauliSum:
    """The sum of a PennyLane operator that has a Pauli decomposition (`operator.pauli_rep`).

    Args:
      operator: e.g. `Prod`, `Sum`, `LinearCombination`, a single Pauli; coefficients may be traced by JAX.
      wires: labels in the order of our wires; None where labels are our wires' numbers.
      n: wires; None is the number of `wires`, or the largest label and one more.

    Raises:
      InputError: it has no such decomposition, a label is no number and not in `wires`, or see `pauli_sum`.
    """
    sentence = getattr(operator, "pauli_rep", None)
    if sentence is None:
        raise InputError(
            f"operator is a {type(operator).__name__} without a Pauli decomposition; for a matrix use "
            "pennylane.pauli_decompose"
        )
    place = None if wires is None else {label: i for i, label in enumerate(wires)}
    listed: list[Term] = []
    for word, c in sentence.items():
        if place is not None and not set(word) <= set(place):
            raise InputError(f"wires {list(word)} are not all in {list(place)}; name all labels in order")
        own = [_number(label) if place is None else place[label] for label in word]
        listed.append((c, "".join(word.values()), own))
    if n is None:
        if wires is not None:
            n = len(wires)
        elif len(operator.wires):
            n = max(_number(label) for label in operator.wires) + 1
    return pauli_sum(listed or [(0.0, "", ())], n)


def words(hamiltonian: PauliSum) -> dict[str, complex | float]:
    """Coefficient of every word, a letter a wire: {"XIZ": 0.5, ...}; those that are exactly 0 are left out.

    Raises:
      InputError: the sum is traced.
    """
    x, z, c = all_terms(hamiltonian)
    if isinstance(c, jax.core.Tracer):
        raise InputError("the sum's coefficients are traced by jit, vmap or grad; list its words outside")
    wires = range(hamiltonian.n)[::-1]
    return {
        "".join("IZXY"[2 * (a >> w & 1) + (b >> w & 1)] for w in wires): value
        for a, b, value in zip(x.tolist(), z.tolist(), np.asarray(c).tolist(), strict=True)
        if value != 0
    }


def simplify(hamiltonian: PauliSum, *, tolerance: float = 0.0) -> PauliSum:
    """The sum without words whose |coefficient| is at most `tolerance`.

    Raises:
      InputError: the sum is traced.
    """
    kept = {word: c for word, c in words(hamiltonian).items() if abs(c) > tolerance}
    return pauli_sum(kept or {"I" * hamiltonian.n: 0.0})


def stack(sums: Sequence[PauliSum]) -> PauliSum:
    """One sum whose coefficients have a leading axis, for `vmap`, e.g. over the bond lengths of a molecule.

    All get the words of all: `jax.vmap(lambda c: expval(psi, dataclasses.replace(stacked, c=c)))(stacked.c)`.

    Raises:
      InputError: there are none, or their wires differ.
    """
    if not sums:
        raise InputError("sums is empty")
    everything = functools.reduce(PauliSum.__add__, [0.0 * each for each in sums])
    aligned = [(everything + each).c for each in sums]
    numpy = all(isinstance(c, np.ndarray) for c in aligned)
    return dataclasses.replace(everything, c=(np if numpy else jnp).stack(aligned))


def apply(
    hamiltonian: PauliSum | PauliTables, psi: Complex[Array, "*batch 2^n"]
) -> Complex[Array, "*batch 2^n"]:
    """H psi; differentiable in reverse mode, in psi and in the coefficients.

    Raises:
      InputError: psi is not a complex state of as many wires.
    """
    return kernel.apply_sum(psi, _operator(hamiltonian, psi))


def expval(psi: Complex[Array, "*batch 2^n"], hamiltonian: PauliSum | PauliTables) -> Float[Array, "*batch"]:
    """<psi|H|psi>; differentiable in all modes, in psi and in the coefficients.

    With its gradient in psi it costs one application of H.

    Raises:
      InputError: psi is not a complex state of as many wires, or the coefficients are complex.
    """
    return kernel.expectation(psi, _real(_operator(hamiltonian, psi)))


def variance(
    psi: Complex[Array, "*batch 2^n"], hamiltonian: PauliSum | PauliTables
) -> Float[Array, "*batch"]:
    """|H psi - <H> psi|^2, which is <H^2> - <H>^2 for a normalised psi and exact where that is small.

    Differentiable in reverse mode, in psi and in the coefficients.

    Raises:
      InputError: psi is not a complex state of as many wires, or the coefficients are complex.
    """
    applied = kernel.apply_sum(psi, _real(_operator(hamiltonian, psi)))
    mean = jnp.real(jnp.sum(psi.conj() * applied, axis=-1, keepdims=True))
    rest = applied - mean * psi
    return jnp.sum(jnp.square(rest.real) + jnp.square(rest.imag), axis=-1)


def prepare(hamiltonian: PauliSum, *, limit: int = 1 << 28) -> PauliSum | PauliTables:
    """The sum with its diagonals made, which `apply` and `expval` then only read: 1.5 to 2 times as fast on a CPU.

    Worth it where one sum meets many states, as in an optimisation, and outside of its `jit`.

    Args:
      hamiltonian: the sum.
      limit: bytes; where the tables would take more, the sum comes back as it is.

    Raises:
      InputError: the sum is an argument of what is traced, or stacked.
    """
    x, z, _ = all_terms(hamiltonian)
    group = (2 * x + (np.bitwise_count(x & z) & 1)).reshape(hamiltonian.z.shape)[:, 0]
    _, first, member = np.unique(group, return_index=True, return_inverse=True)
    itemsize = jax.dtypes.canonicalize_dtype(hamiltonian.c.dtype).itemsize
    if (len(first) * itemsize) << hamiltonian.n > limit:
        return hamiltonian
    made = kernel.tables(_kernel_words(hamiltonian), hamiltonian.n)
    values = jnp.zeros((len(first), 1 << hamiltonian.n), made.values.dtype).at[member].add(made.values)
    return PauliTables(made.x[first], made.odd[first], values)


def dense(hamiltonian: PauliSum) -> Complex[Array, "2^n 2^n"]:
    """The matrix, for up to 13 wires.

    Raises:
      InputError: there are more.
    """
    if hamiltonian.n > 13:
        raise InputError(f"the matrix of {hamiltonian.n} wires is too large; use apply, or up to 13 wires")
    dtype = jnp.promote_types(hamiltonian.c.dtype, jnp.complex64)
    basis = jnp.eye(1 << hamiltonian.n, dtype=jax.dtypes.canonicalize_dtype(dtype))
    return apply(hamiltonian, basis).T


def ground_state(hamiltonian: PauliSum) -> tuple[float, Complex[np.ndarray, " 2^n"]]:
    """Lowest eigenvalue and a state of it, by Lanczos iteration (ARPACK) in double precision.

    Raises:
      InputError: the coefficients are complex, or it does not converge.
    """
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    if np.iscomplexobj(hamiltonian.c):
        raise InputError("the coefficients are complex; a ground state needs real ones")
    size = 1 << hamiltonian.n
    with jax.enable_x64(True):
        if size <= 32:  # ARPACK needs room for its subspace
            values, vectors = np.linalg.eigh(np.asarray(dense(hamiltonian)))
            return float(values[0]), vectors[:, 0]
        prepared = prepare(hamiltonian)
        multiply = jax.jit(lambda psi: apply(prepared, psi))
        operator = LinearOperator(
            (size, size), lambda v: np.asarray(multiply(jnp.asarray(v.ravel(), complex))), dtype=np.complex128
        )
        start = np.random.default_rng(0).standard_normal(size)
        try:
            values, vectors = eigsh(operator, k=1, which="SA", v0=start, tol=1e-12)
        except ArpackError as error:
            raise InputError(f"the Lanczos iteration failed: {error}") from error
    return float(values[0]), vectors[:, 0]


def _number(label: Any) -> int:
    if not isinstance(label, int | np.integer):
        raise InputError(f"wire {label!r} is no number; name all labels in order: wires=[...]")
    return int(label)


class Terms(NamedTuple):
    """Masks and coefficients of words, [t] each."""

    x: np.ndarray
    z: np.ndarray
    c: Any


def all_terms(hamiltonian: PauliSum) -> Terms:
    """One entry a slot, padding included."""
    if any(isinstance(mask, jax.core.Tracer) for mask in (hamiltonian.x, hamiltonian.z)):
        raise InputError(
            "the sum's masks are traced: it is an argument of jit, vmap or grad; combine sums outside, or close over "
            "them and pass coefficients alone"
        )
    if np.ndim(hamiltonian.c) != 2:
        raise InputError(
            f"the sum's coefficients have shape {hamiltonian.c.shape}; a stacked sum must be mapped over"
        )
    z = np.asarray(hamiltonian.z, np.int64)
    x = np.repeat(np.asarray(hamiltonian.x, np.int64), z.shape[1])
    return Terms(x, z.reshape(-1), hamiltonian.c.reshape(-1))


def _grouped(x: np.ndarray, z: np.ndarray, c: Any, n: int) -> PauliSum:
    """Equal words merged, then rows of at most `kernel.WIDTH` words of one x and one parity of the number of Y."""
    key, member = np.unique(x << n | z, return_inverse=True)
    merged: Any
    if isinstance(c, np.ndarray):
        merged = np.zeros(len(key), c.dtype)
        np.add.at(merged, member, c)
    else:
        merged = jnp.zeros(len(key), c.dtype).at[member].add(c)
    x, z = key >> n, key & ((1 << n) - 1)
    group = 2 * x + (np.bitwise_count(x & z) & 1)
    order = np.argsort(group, kind="stable")
    _, start, counts = np.unique(group[order], return_index=True, return_counts=True)
    width = int(min(kernel.WIDTH, counts.max()))
    within = np.arange(len(key)) - np.repeat(start, counts)
    rows_before = np.cumsum(-(-counts // width)) - -(-counts // width)
    row = np.repeat(rows_before, counts) + within // width
    slots = np.full((row[-1] + 1, width), -1)
    slots[row, within % width] = order
    # Padding repeats the row's first word, whose parity of Y it must have.
    filled = np.where(slots < 0, slots[:, :1], slots)
    coefficients = (np if isinstance(merged, np.ndarray) else jnp).where(slots < 0, 0, merged[filled])
    return PauliSum(x[filled[:, 0]].astype(np.int32), z[filled].astype(np.int32), coefficients, n)


def _checked_word(word: str, wires: Sequence[int], n: int | None) -> tuple[int, ...]:
    unknown = set(word) - set("IXYZ")
    if unknown:
        raise InputError(f"word {word!r} has the letter {min(unknown)!r}; letters are I, X, Y and Z")
    if len(word) != len(wires):
        raise InputError(f"word {word!r} has {len(word)} letters for {len(wires)} wires")
    most = (MOST_WIRES if n is None else n) - 1
    for wire in wires:
        if not 0 <= wire <= most:
            raise InputError(f"word {word!r} is on wire {wire}; wires lie between 0 and {most}")
    if len(set(wires)) != len(wires):
        raise InputError(f"word {word!r} is on the wires {tuple(wires)}; none may stand twice")
    return tuple(wires)


def _coefficients(values: list[Any]) -> Any:
    """All of them in one array; imaginary parts that are rounding errors (below 1e-12 of the largest) dropped."""
    for value in values:
        if np.ndim(value):
            raise InputError(
                f"a coefficient has shape {np.shape(value)}; all must be numbers (stack or vmap for batches)"
            )
    if any(isinstance(value, jax.Array) for value in values):
        return jnp.stack([jnp.asarray(value) for value in values])
    c = np.asarray(values)
    if np.iscomplexobj(c):
        return c.real.copy() if np.abs(c.imag).max() <= 1e-12 * np.abs(c).max() else c
    return c.astype(np.float64)


def _kernel_words(hamiltonian: PauliSum) -> kernel.Words:
    return kernel.Words(*(jnp.asarray(part) for part in (hamiltonian.x, hamiltonian.z, hamiltonian.c)))


def _operator(hamiltonian: PauliSum | PauliTables, psi: Array) -> _Operator:
    if isinstance(hamiltonian, PauliTables):
        size = hamiltonian.values.shape[-1]
    else:
        size = 1 << hamiltonian.n
    if psi.ndim < 1 or psi.shape[-1] != size:
        n = size.bit_length() - 1
        raise InputError(f"psi has shape {psi.shape}; for a sum on {n} wires it must be (..., {size})")
    if not jnp.iscomplexobj(psi):
        raise InputError(f"psi has dtype {psi.dtype}; it must be complex")
    if isinstance(hamiltonian, PauliTables):
        return kernel.Tables(*hamiltonian)
    if np.ndim(hamiltonian.c) != 2:
        raise InputError(
            f"the sum's coefficients have shape {hamiltonian.c.shape}; a stacked sum must be mapped over"
        )
    return _split(hamiltonian)


def _split(hamiltonian: PauliSum) -> _Operator:
    """The words of Z alone and, where they are many, those of X alone, apart from the others: as two diagonals."""
    if any(isinstance(mask, jax.core.Tracer) for mask in (hamiltonian.x, hamiltonian.z)):
        return _kernel_words(hamiltonian)
    x, z, c = np.asarray(hamiltonian.x), np.asarray(hamiltonian.z), hamiltonian.c
    of_z = x == 0
    of_x = ~of_z & ~np.any(z, axis=1)
    if np.sum(of_x) < _FEWEST_X_WORDS:
        of_x[:] = False
    others = ~(of_z | of_x)
    if np.all(others) or (len(x) == 1 and not np.any(of_x)):
        return _kernel_words(hamiltonian)

    known = isinstance(hamiltonian.c, np.ndarray) and hamiltonian.n <= _KNOWN_WIRES

    def diagonal(masks: np.ndarray, own: Any) -> kernel.Words | kernel.Tables:
        if known:
            values = _walsh(masks.reshape(-1), np.asarray(own).reshape(-1), hamiltonian.n)
            return kernel.Tables(jnp.zeros(1, jnp.int32), jnp.zeros(1, bool), jnp.asarray(values[None]))
        return kernel.Words(
            jnp.zeros(1, jnp.int32), jnp.asarray(masks.reshape(1, -1)), jnp.asarray(own).reshape(1, -1)
        )

    return kernel.Split(
        diagonal(z[of_z], c[of_z]) if np.any(of_z) else None,
        # of such a row all words are one
        diagonal(x[of_x], c[of_x].sum(axis=1)) if np.any(of_x) else None,
        kernel.Words(*(jnp.asarray(part[others]) for part in (x, z, c))) if np.any(others) else None,
    )


def _walsh(masks: np.ndarray, c: np.ndarray, n: int) -> np.ndarray:
    """Sum over words of c (-1)^parity(j AND mask), for all j: the Walsh transform of c, by halves of the index."""
    at_masks = np.zeros(1 << n, c.dtype)
    np.add.at(at_masks, masks, c)
    upper, lower = (
        1.0 - 2 * (np.bitwise_count(np.arange(1 << bits)[:, None] & np.arange(1 << bits)) & 1)
        for bits in (n // 2, n - n // 2)
    )
    return (upper @ at_masks.reshape(len(upper), -1) @ lower).reshape(-1)


def _real(operator: _Operator) -> _Operator:
    if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(operator)):
        raise InputError(
            "the sum has complex coefficients; an expectation value needs real ones (a Hermitian sum)"
        )
    return operator
