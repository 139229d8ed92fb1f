"""Many devices and many hosts: joining processes, meshes, sharding rules, row-wise work."""

from jaxlab.parallel.hosts import Hosts, from_first, initialize, joined, to_host, wait_for_all
from jaxlab.parallel.mesh import make_mesh, parse_mesh
from jaxlab.parallel.rows import shard_rows
from jaxlab.parallel.rules import REPLICATED, Rules, model_rules, path_name, shard, shardings

__all__ = [
    "REPLICATED",
    "Hosts",
    "Rules",
    "from_first",
    "initialize",
    "joined",
    "make_mesh",
    "model_rules",
    "parse_mesh",
    "path_name",
    "shard",
    "shard_rows",
    "shardings",
    "to_host",
    "wait_for_all",
]
