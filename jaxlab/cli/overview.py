"""`jaxlab list` and `jaxlab info`."""

from jaxlab import info, recipes
from jaxlab.cli.options import no_options
from jaxlab.cli.tables import print_table


def list_systems(argv: list[str]) -> int:
    """Prints every system: its command, title, paper, package and what it needs."""
    no_options("list", "every system: paper, command, what it needs", argv)
    rows = [
        {
            "command": f"jaxlab run {system.name}" if system.module else f"{system.name} (not there yet)",
            "system": system.title,
            "paper": f"arXiv:{system.arxiv}",
            "package": f"jaxlab.{system.package}",
            "needs": f"jaxlab[{','.join(system.extras)}]" if system.extras else "jaxlab",
        }
        for system in recipes.SYSTEMS.values()
    ]
    rows.sort(key=lambda row: "not there yet" in row["command"])
    print_table(rows)
    return 0


def show_info(argv: list[str]) -> int:
    """Prints versions, devices, installed extras and the cache directory."""
    no_options("info", "versions, devices, what is installed", argv)
    environment = info.environment()
    rows = [
        {"what": "python", "found": f"{environment['python']} on {environment['machine']}"},
        *({"what": name, "found": version} for name, version in environment["versions"].items()),
        *({"what": "device", "found": device} for device in environment["devices"]),
    ]
    for extra, missing in environment["extras"].items():
        found = f"missing {', '.join(missing)}: pip install 'jaxlab[{extra}]'" if missing else "installed"
        rows.append({"what": f"jaxlab[{extra}]", "found": found})
    rows.append({"what": "cache", "found": environment["cache"]})
    print_table(rows)
    return 0
