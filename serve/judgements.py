"""What people say of results: thumbs and blind votes, kept for evaluation and never trained on; `make judgements`.

Reads   runs/.judgements/judgements.sqlite3
Writes  runs/.judgements/{judgements.qrels, judgements.json}

They lie under paths.runs, beside the comparisons, because they judge runs and no stage can make them again:
paths.data holds what can be derived. All runs and generations share one file; SQLite's log lets several workers write
while others read, on a local disk (its locks do not hold over a network file system).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from math import floor
from pathlib import Path
from typing import Any

from configs.artifacts import ArtifactError, atomic_write
from configs.compose import Paths, register, run_stage
from serve.config import JudgementsConfig

log = logging.getLogger(__name__)
FOLDER, STORE, QRELS, EXPORT = ".judgements", "judgements.sqlite3", "judgements.qrels", "judgements.json"
FORMAT = 1
BUSY_S = 10.0  # a worker waits this long for another one's write
MAX_GRADE = 3
TIE = "tie"
SCHEMA = """
CREATE TABLE judgements (
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, question TEXT NOT NULL, image_id TEXT NOT NULL, grade INTEGER,
    rank INTEGER NOT NULL, run TEXT NOT NULL, generation TEXT NOT NULL, rater TEXT NOT NULL, made_at TEXT NOT NULL
);
CREATE TABLE votes (
    id INTEGER PRIMARY KEY, question TEXT NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL,
    first_generation TEXT NOT NULL, second_generation TEXT NOT NULL, winner TEXT NOT NULL, rater TEXT NOT NULL,
    made_at TEXT NOT NULL
);
CREATE TABLE secret (key BLOB NOT NULL);
"""
# The last word of each rater on each image, retracted ones left out.
LAST_JUDGEMENTS = """
SELECT * FROM judgements WHERE grade IS NOT NULL AND id IN (
    SELECT MAX(id) FROM judgements GROUP BY topic, image_id, rater
) ORDER BY topic, image_id, id
"""
LAST_VOTES = """
SELECT * FROM votes WHERE id IN (SELECT MAX(id) FROM votes GROUP BY question, first, second, rater)
ORDER BY first, second, id
"""


@dataclass(frozen=True)
class Judgement:
    """What one person says of one result."""

    topic: str  # what TREC files call the question: no blanks, and that of evaluation where the question is one tag
    question: str  # as the answer wrote it
    image_id: str
    grade: int | None  # 0 (thumb down) to 3, thumb up is 1; None takes back what the rater said before
    rank: int  # at which it was shown, from 1
    run: str
    generation: str
    rater: str  # random, of a cookie

    def __post_init__(self) -> None:
        if self.grade is not None and not 0 <= self.grade <= MAX_GRADE:
            raise ValueError(f"grade must lie in 0..{MAX_GRADE}, or be none to take it back, got {self.grade}")
        if not self.topic or any(map(str.isspace, self.topic)):
            raise ValueError(f"topic must have a name without blanks, got {self.topic!r}")


@dataclass(frozen=True)
class Vote:
    """Which of two runs one person found better for a question, without having been told which is which."""

    question: str
    first: str  # runs, in alphabetical order
    second: str
    first_generation: str
    second_generation: str
    winner: str  # one of the two, or `tie`
    rater: str

    def __post_init__(self) -> None:
        if not self.first < self.second:
            raise ValueError(f"runs of a vote stand in alphabetical order, got {self.first}, {self.second}")
        if self.winner not in (self.first, self.second, TIE):
            raise ValueError(f"winner must be {self.first}, {self.second} or {TIE}, got {self.winner}")


def topic_of(question: str, tag: str = "") -> str:
    """Return the TREC topic of a question: its tag where it is one, as evaluation names it, with `_` for blanks."""
    return "_".join((tag or question).split())


class Judgements:
    """The store; every call opens the file anew, so that it may be shared by threads and forked workers."""

    def __init__(self, paths: Paths) -> None:
        self.directory = paths.run(FOLDER)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open the file, made where it is missing; what the block writes is on the disk when it ends, or not at all."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.directory / STORE, timeout=BUSY_S, isolation_level="IMMEDIATE")) as store:
            store.row_factory = sqlite3.Row
            store.execute("PRAGMA synchronous = FULL")
            found = store.execute("PRAGMA user_version").fetchone()[0]
            if found == 0:
                self._create(store)
            elif found != FORMAT:
                raise ArtifactError(
                    f"'{self.directory / STORE}' has format {found}, this version reads {FORMAT}; "
                    "use the version that wrote it, or move the file away"
                )
            with store:
                yield store

    def _create(self, store: sqlite3.Connection) -> None:
        store.execute("PRAGMA journal_mode = WAL")
        store.execute("BEGIN EXCLUSIVE")
        if store.execute("PRAGMA user_version").fetchone()[0] == 0:  # not made by another worker in the meantime
            for statement in filter(str.strip, SCHEMA.split(";")):
                store.execute(statement)
            store.execute("INSERT INTO secret VALUES (?)", [secrets.token_bytes(32)])
            store.execute(f"PRAGMA user_version = {FORMAT}")
        store.commit()

    def add(self, said: Judgement | Vote) -> None:
        """Keep what somebody says; it survives a power cut once this returns."""
        table = "judgements" if isinstance(said, Judgement) else "votes"
        row = {**asdict(said), "made_at": datetime.now(UTC).isoformat(timespec="seconds")}
        places = ", ".join(f":{name}" for name in row)
        with self._open() as store:
            store.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", row)  # noqa: S608 - our names

    def grades_of(self, topic: str, rater: str) -> dict[str, int]:
        """Return what a rater last said of the images of a topic, by image_id."""
        if not (self.directory / STORE).exists():
            return {}
        with self._open() as store:
            rows = store.execute(
                "SELECT image_id, grade FROM judgements WHERE topic = ? AND rater = ? ORDER BY id", [topic, rater]
            ).fetchall()
        last = {row["image_id"]: row["grade"] for row in rows}
        return {image_id: grade for image_id, grade in last.items() if grade is not None}

    def sides(self, question: str, runs: tuple[str, str], rater: str) -> tuple[str, str]:
        """Return two runs as left and right of a blind comparison: as a coin falls, the same way for the same asking.

        The coin is keyed with a secret of the store, so that a page need not carry the answer.
        """
        first, second = sorted(runs)
        with self._open() as store:
            key = store.execute("SELECT key FROM secret").fetchone()["key"]
        asked = json.dumps([question, first, second, rater]).encode()
        coin = hmac.new(key, asked, hashlib.sha256).digest()[0] & 1
        return (second, first) if coin else (first, second)

    def forget(self, image_ids: Iterable[str]) -> int:
        """Delete all that was said of images, and of questions that name them; return how many rows went.

        Nothing is left in free pages or in the log: the file is written anew.
        """
        named = [f"%{image_id}%" for image_id in image_ids]
        with self._open() as store:
            store.execute("PRAGMA secure_delete = ON")
            gone = 0
            for like in named:
                said = "DELETE FROM judgements WHERE image_id LIKE ? OR question LIKE ? OR topic LIKE ?"
                gone += store.execute(said, [like] * 3).rowcount
                gone += store.execute("DELETE FROM votes WHERE question LIKE ?", [like]).rowcount
        with closing(sqlite3.connect(self.directory / STORE, timeout=BUSY_S, isolation_level=None)) as store:
            store.execute("VACUUM")
            store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    def graded(self) -> list[dict[str, Any]]:
        """Return the judged results by topic and image_id, several raters' grades as their mean."""
        with self._open() as store:
            rows = store.execute(LAST_JUDGEMENTS).fetchall()
        groups = groupby(rows, key=lambda row: (row["topic"], row["image_id"]))
        return [_united(list(group)) for _, group in groups]

    def votes(self) -> list[dict[str, Any]]:
        """Return the blind votes on each two runs, with the share that the first won and its exact interval."""
        with self._open() as store:
            rows = store.execute(LAST_VOTES).fetchall()
        groups = groupby(rows, key=lambda row: (row["first"], row["second"]))
        return [tally(first, second, [row["winner"] for row in group]) for (first, second), group in groups]


def _united(rows: Sequence[sqlite3.Row]) -> dict[str, Any]:
    """Unite what raters say of one image: the mean of their grades, halves rounded up."""
    grades = [row["grade"] for row in rows]
    mean = sum(grades) / len(grades)
    return {
        "topic": rows[0]["topic"],
        "question": rows[-1]["question"],
        "image_id": rows[0]["image_id"],
        "grade": floor(mean + 0.5),
        "mean": round(mean, 4),
        "raters": len(grades),
        "judgements": [
            {name: row[name] for name in ("grade", "rank", "run", "generation", "rater", "made_at")} for row in rows
        ],
    }


def tally(first: str, second: str, winners: Sequence[str]) -> dict[str, Any]:
    """Count votes and tell the winner.

    Returns:
        `share` of the votes other than ties that the first run won, with its exact 95 % interval (Clopper and Pearson,
        1934), and `verdict` in words: one is better where the interval leaves 0.5 out.
    """
    from scipy.stats import binomtest  # takes longer to import than a server may take to start

    wins = winners.count(first)
    decided = wins + winners.count(second)
    low, high = binomtest(wins, decided).proportion_ci(0.95, "exact") if decided else (0.0, 1.0)
    better = first if low > 0.5 else second if high < 0.5 else ""
    told = f"{better} is better" if better else f"{first} and {second} cannot be told apart"
    return {
        "first": first,
        "second": second,
        "first_wins": wins,
        "second_wins": decided - wins,
        "ties": len(winners) - decided,
        "share": round(wins / decided, 4) if decided else None,
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "winner": better,
        "verdict": f"{told}: {first} wins {wins} of {decided} votes, interval {low:.2f} to {high:.2f} of them",
    }


def qrels_text(graded: Sequence[dict[str, Any]]) -> str:
    """Return judged results as TREC's qrels: topic, 0, image_id, grade."""
    return "".join(f"{each['topic']} 0 {each['image_id']} {each['grade']}\n" for each in graded)


def export(cfg: JudgementsConfig) -> Path:
    """Write the judgements as qrels and as JSON beside their store; return the qrels. Callable without Hydra."""
    judgements = Judgements(cfg.paths)
    if not (judgements.directory / STORE).exists():
        raise ArtifactError(
            f"'{judgements.directory}' has no judgements yet. Run `make serve`, and give results a thumb up or down."
        )
    graded, votes = judgements.graded(), judgements.votes()
    atomic_write(judgements.directory / QRELS, qrels_text(graded))
    atomic_write(
        judgements.directory / EXPORT,
        json.dumps({"judgements": graded, "votes": votes}, indent=1, ensure_ascii=False) + "\n",
    )
    topics = len({each["topic"] for each in graded})
    log.info("%d images judged for %d questions: %s", len(graded), topics, judgements.directory / QRELS)
    for pair in votes:
        log.info("%s", pair["verdict"])
    return judgements.directory / QRELS


register("judgements", JudgementsConfig)

if __name__ == "__main__":
    run_stage(export, JudgementsConfig, "judgements")
