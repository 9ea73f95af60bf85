"""What is to be remembered beside the journal: which run of it this is, and what was seen."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from services.common.errors import DataLoss
from services.controller.providers.ec2.hazards import Hazards

_log = logging.getLogger(__name__)

VERSION = 1
FILE = "ec2.json"


@dataclass(slots=True)
class Memory:
    """Lost together with the journal, for it stands in the same directory."""

    path: Path
    run: str = field(default_factory=lambda: uuid4().hex)
    """Names of nodes are counted from 1 in every journal: this tells the node-1 of one from the
    node-1 of another, to EC2 too, which remembers orders."""
    hazards: Hazards = field(default_factory=Hazards)

    @classmethod
    def open(cls, directory: Path) -> Memory:
        """What was kept, or a new one, which is kept before anything can be ordered. What cannot be
        read is begun anew: instances are found by their tags all the same."""
        path = directory / FILE
        try:
            document = json.loads(path.read_text())
            if document["version"] != VERSION:
                raise DataLoss(f"version {document['version']} is not known")
            return cls(path, str(document["run"]), Hazards.from_json(document["hazards"]))
        except FileNotFoundError:
            pass
        except (DataLoss, KeyError, TypeError, ValueError) as error:
            _log.error("what was remembered of EC2 cannot be read", extra={"why": str(error)})
        new = cls(path)
        new.keep()
        return new

    def keep(self) -> None:
        """Whole or not at all. Raises OSError."""
        document = {"version": VERSION, "run": self.run, "hazards": self.hazards.to_json()}
        beside = self.path.with_suffix(".new")
        with beside.open("w") as file:
            json.dump(document, file, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
