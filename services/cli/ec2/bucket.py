"""The bucket of a mesh: models are pushed there, and it is emptied when somebody says so. Routers
keep files of batches in it."""

from __future__ import annotations

from typing import Any

from services.cli.ec2.account import Account, AwsRefusal
from services.cli.ec2.stack import STACK_TAG
from services.cli.mesh_directory import MeshError
from services.common.errors import ShuntError
from services.tensorstore import upkeep
from services.tensorstore.cli import progress_bar
from services.tensorstore.places.uris import open_backend

PREFIX = "models"


def store_uri(bucket: str) -> str:
    """Of the models there."""
    return f"s3://{bucket}/{PREFIX}"


def files_prefix(mesh: str) -> str:
    """What the names begin with of all that the mesh's routers keep: others may share the
    bucket."""
    return f"files/{mesh}/"


def push(model: str, store: str, bucket: str) -> int:
    """Copies a model there, with a progress bar; what is there already is not sent, so that one
    that was interrupted goes on. The bytes that were sent. Raises MeshError."""
    try:
        with progress_bar(f"push {model}") as progress:
            target = open_backend(store_uri(bucket))
            _, sent = upkeep.copy(open_backend(store), target, model, progress)
    except ShuntError as error:
        raise MeshError(f"{model} to {store_uri(bucket)}: {error.message}") from None
    return sent


def has(bucket: str, model: str, digest: str) -> bool:
    """Whether the bucket has this version of the model under its name. Raises MeshError."""
    try:
        return open_backend(store_uri(bucket)).resolve(model) == digest
    except ShuntError as error:
        raise MeshError(f"{store_uri(bucket)}: {error.message}") from None


def left_behind(account: Account, mesh: str) -> str | None:
    """The bucket that a stack of this name has made and left, by its tag. Raises AwsRefusal."""
    pages = account.client("resourcegroupstaggingapi").pages(
        "get_resources",
        TagFilters=[{"Key": STACK_TAG, "Values": [mesh]}],
        ResourceTypeFilters=["s3"],
    )
    names = [
        row["ResourceARN"].rpartition(":")[2] for p in pages for row in p["ResourceTagMappingList"]
    ]
    return min(names, default=None)


class Bucket:
    """Of its objects nothing but how many there are is looked at."""

    def __init__(self, account: Account, name: str) -> None:
        self._s3 = account.client("s3")
        self.name = name

    def exists(self) -> bool:
        """Raises AwsRefusal."""
        try:
            self._s3.head_bucket(Bucket=self.name)
        except AwsRefusal as refusal:
            if refusal.code in ("404", "NoSuchBucket"):
                return False
            raise
        return True

    def size_bytes(self) -> int:
        """Of all there is. Raises AwsRefusal."""
        pages = self._s3.pages("list_objects_v2", Bucket=self.name)
        return sum(row["Size"] for page in pages for row in page.get("Contents", ()))

    def forget(self, prefix: str) -> int:
        """Deletes what has such names; how many objects there were. Raises AwsRefusal."""
        deleted = 0
        for page in self._s3.pages("list_objects_v2", Bucket=self.name, Prefix=prefix):
            deleted += self._deleted([{"Key": row["Key"]} for row in page.get("Contents", ())])
        return deleted

    def delete(self) -> int:
        """It and all that is in it, older versions too; how many objects there were. Raises
        AwsRefusal."""
        deleted = 0
        for page in self._s3.pages("list_object_versions", Bucket=self.name):
            rows: list[dict[str, Any]] = [
                *page.get("Versions", ()),
                *page.get("DeleteMarkers", ()),
            ]
            deleted += self._deleted(
                [{"Key": row["Key"], "VersionId": row["VersionId"]} for row in rows]
            )
        self._s3.delete_bucket(Bucket=self.name)
        return deleted

    def _deleted(self, keys: list[dict[str, str]]) -> int:
        """How many they were; at most as many as S3 lists in a page."""
        if not keys:
            return 0
        answer = self._s3.delete_objects(Bucket=self.name, Delete={"Objects": keys, "Quiet": True})
        if errors := answer.get("Errors"):
            raise MeshError(f"{self.name}: {errors[0]['Key']}: {errors[0]['Code']}")
        return len(keys)
