"""What the mesh's hosts fetch at their start: parameters of AWS's Parameter Store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.cli.ec2.account import Account, AwsRefusal

_DELETED_AT_ONCE = 10
"""More names no call takes."""


class Parameters:
    """All below a mesh's own path."""

    def __init__(self, account: Account, mesh: str) -> None:
        self._ssm = account.client("ssm")
        self.path = f"/shuntserve/{mesh}"

    def put(self, values: Mapping[str, str], *, secret: bool) -> None:
        """By names below the path; in place of what stood there. Raises AwsRefusal."""
        for name, value in values.items():
            self._ssm.put_parameter(
                Name=f"{self.path}/{name}",
                Value=value,
                Type="SecureString" if secret else "String",
                Overwrite=True,
                Tier="Intelligent-Tiering",
            )

    def get(self, name: str) -> str | None:
        """None where there is none. Raises AwsRefusal."""
        try:
            answer = self._ssm.get_parameter(Name=f"{self.path}/{name}", WithDecryption=True)
        except AwsRefusal as refusal:
            if refusal.code == "ParameterNotFound":
                return None
            raise
        return str(answer["Parameter"]["Value"])

    def names(self) -> list[str]:
        """Of all there are. Raises AwsRefusal."""
        pages = self._ssm.pages("get_parameters_by_path", Path=self.path, Recursive=True)
        return sorted(row["Name"] for page in pages for row in page["Parameters"])

    def delete(self, names: Iterable[str]) -> None:
        """Those that are gone already too. Raises AwsRefusal."""
        left = list(names)
        while left:
            self._ssm.delete_parameters(Names=left[:_DELETED_AT_ONCE])
            left = left[_DELETED_AT_ONCE:]
