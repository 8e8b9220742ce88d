"""Whether training would fail, from a plan alone."""

from __future__ import annotations

from recipe_kit.plan.shape import DiskPart, MemoryPart, Plan, VerdictPart


def problems(plan: Plan) -> list[str]:
    """Everything that would stop training, as sentences; [] when nothing was found."""
    found = [error["message"] for error in plan["errors"]]
    found += [f"{finding['what']}: {finding['detail']}" for finding in plan["access"] or () if finding["ok"] is False]
    for part in plan["disk"] or ():
        found += _disk_problems(part)
    steps = plan["steps"]
    if steps and steps["steps_per_epoch"] == 0:
        found.append(
            "training.dataloader_drop_last leaves no full batch, so nothing would be trained; "
            "set it to false, or lower training.per_device_train_batch_size"
        )
    if plan["memory"] and plan["memory"]["hopeless"]:
        found.append(does_not_fit(plan["memory"]))
    for proof in failed_proofs(plan):
        remedy = f"; {proof['remedy']}" if proof["remedy"] else ""
        found.append(f"{proof['name']}: {proof['detail']}{remedy}")
    return list(dict.fromkeys(found))


def failed_proofs(plan: Plan) -> list[VerdictPart]:
    """Proofs that would end the run: those that failed and that the recipe does not downgrade."""
    verdicts = plan["proofs"]["verdicts"] if plan["proofs"] else []
    return [verdict for verdict in verdicts if verdict["ok"] is False and verdict["fatal"]]


def does_not_fit(part: MemoryPart) -> str:
    """What is missing, and the lines of the recipe that help."""
    needed, there = gib(part["needed_bytes"]), gib(part["card_bytes"])
    each = " on each GPU" if part["processes"] > 1 else ""
    told = f"memory: about {needed} are needed{each} and {part['card']} has {there}"
    change = part["change"]
    more = "more GPUs, " if part["strategy"] in ("fsdp2", "zero2", "zero3") else ""
    if change is None:
        return f"{told}; {more}a smaller model or data.max_length is needed"
    lines = " and ".join(f"`{key}: {_yaml(value)}`" for key, value in change["lines"].items())
    if change["fits"]:
        return f"{told}; write {lines}, which needs {gib(change['needed_bytes'])}"
    return (
        f"{told}; {lines} would make it {gib(change['needed_bytes'])}, which is not enough: lower data.max_length "
        f"too, or take {more}a smaller model"
    )


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def gib(size: int) -> str:
    """Bytes for people: 6.5 MiB, 2.30 GiB."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def _disk_problems(part: DiskPart) -> list[str]:
    if not part["writable"]:
        return [f"cannot write {part['folder']}; choose another folder with --runs-dir"]
    if part["needed_bytes"] > part["free_bytes"]:
        return [
            f"{part['folder']}: about {gib(part['needed_bytes'])} are needed and {gib(part['free_bytes'])} are free; "
            "make room, choose another folder with --runs-dir, or lower training.save_total_limit"
        ]
    return []
