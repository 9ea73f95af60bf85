"""The provider put together with its clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from pathlib import Path

from botocore.exceptions import BotoCoreError

from services.common.errors import FailedPrecondition
from services.controller.core.cluster.market import Offer
from services.controller.providers.ec2.calls import READ_TIMEOUT_S, Calls, make_client
from services.controller.providers.ec2.memory import Memory
from services.controller.providers.ec2.provider import Ec2Provider
from services.controller.providers.ec2.queue import Queue
from services.controller.providers.ec2.settings import Ec2Settings


def make_provider(
    settings: Ec2Settings,
    *,
    directory: Path,
    environment: Callable[[Offer], Mapping[str, str]],
    plan: Callable[[], int],
    known: Callable[[], Set[str] | None],
) -> Ec2Provider:
    """What is to be remembered stands in `directory`; for the others see `Ec2Provider`. Raises
    FailedPrecondition where boto3 lacks what it needs, such as a region."""
    limit_s, wait_s = settings.call_limit_s, settings.queue_wait_s
    try:
        ec2 = make_client("ec2", settings.region)
        sqs = make_client("sqs", settings.region, read_timeout_s=READ_TIMEOUT_S + wait_s)
    except (BotoCoreError, ValueError) as error:
        raise FailedPrecondition(f"EC2: {error}", field="ec2") from error
    queue = None
    if settings.queue_url:
        queue = Queue(Calls(sqs, limit_s=limit_s), settings.queue_url, wait_s=wait_s)
    return Ec2Provider(
        settings,
        ec2=Calls(ec2, limit_s=limit_s),
        queue=queue,
        region=ec2.meta.region_name,
        memory=Memory.open(directory),
        environment=environment,
        plan=plan,
        known=known,
    )
