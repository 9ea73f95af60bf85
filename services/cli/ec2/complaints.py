"""What AWS refuses, in words that say what is to be done about it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from services.cli.ec2.quotas import OTHERS, Quota, vcpu_quota

_LONGEST = 400
_ACTION = re.compile(r"perform:?\s+([a-z0-9-]+:[A-Za-z0-9*]+)")
_RESOURCE = re.compile(r"on resource:?\s+(\S+)")
_TYPE = re.compile(r"\b([a-z]+[0-9][a-z0-9-]*\.[a-z0-9-]+)\b")
_DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "UnauthorizedOperation",
        "Client.UnauthorizedOperation",
    }
)
_LOGIN = "log in again (`aws sso login`, or new keys) and say it once more"
_CREDENTIALS: Mapping[str, str] = {
    "NoCredentialsError": "there are no AWS credentials: `aws configure`, AWS_PROFILE, or"
    " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "PartialCredentialsError": "the AWS credentials are not whole: a key needs its secret",
    "ExpiredToken": f"the AWS credentials have expired: {_LOGIN}",
    "ExpiredTokenException": f"the AWS credentials have expired: {_LOGIN}",
    "RequestExpired": "AWS takes the request for an old one: set this machine's clock",
    "TokenRetrievalError": f"the AWS login has expired: {_LOGIN}",
    "UnauthorizedSSOTokenError": f"the AWS login has expired: {_LOGIN}",
    "SSOTokenLoadError": f"there is no AWS login: {_LOGIN}",
    "InvalidClientTokenId": "AWS does not know this access key: another profile (AWS_PROFILE),"
    " or new keys",
    "UnrecognizedClientException": "AWS does not know this access key: another profile"
    " (AWS_PROFILE), or new keys",
    "AuthFailure": "AWS does not take these credentials here: are they of this region's partition,"
    " and is the region enabled for the account?",
    "SignatureDoesNotMatch": "AWS does not take the secret of this access key: copy it again",
    "NoRegionError": "no region is set: --region, AWS_DEFAULT_REGION, or the profile's",
    "OptInRequired": "the account is not subscribed to this, or the region is not enabled for it:"
    " AWS Console, Account, Regions",
}
_QUOTA_CODES = frozenset({"VcpuLimitExceeded", "InstanceLimitExceeded"})
_SPOT_QUOTA = "MaxSpotInstanceCountExceeded"
_SLOW = frozenset({"Throttling", "ThrottlingException", "RequestLimitExceeded", "SlowDown"})
_AWAY = frozenset(
    {"EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError"}
)


def advice(code: str, message: str, doing: str, instance_type: str = "") -> str:
    """One line: what was refused at what, and what to do. `code` is AWS's, or the name of the error
    that boto3 itself raised; `doing` says what was asked for, as service:Action."""
    if code in _CREDENTIALS:
        return _CREDENTIALS[code]
    if code == "ProfileNotFound":
        return f"{_short(message)}: AWS_PROFILE names one of ~/.aws/config"
    if code in _DENIED or "is not authorized to perform" in message:
        return _denied(message, doing)
    if (quota := _quota(code, message, instance_type)) is not None:
        return f"the account's quota is used up: ask for more of {_named(quota)}"
    if code in _QUOTA_CODES or code == _SPOT_QUOTA:
        return f"the account's quota of vCPUs is used up ({doing}): {_short(message)}"
    if code in _SLOW:
        return f"AWS asks to go slower ({doing}): say it again in a minute"
    if code in _AWAY:
        return f"AWS cannot be reached ({doing}): {_short(message)}; is AWS_ENDPOINT_URL right?"
    return f"{doing}: {code}: {_short(message)}" if code else f"{doing}: {_short(message)}"


def of_stack(reason: str) -> str:
    """The same for why a resource of a stack has failed, which comes as one text."""
    if "is not authorized to perform" in reason or "AccessDenied" in reason:
        return _denied(reason, "the resource")
    codes = (*OTHERS, *_QUOTA_CODES, _SPOT_QUOTA)
    code = next((code for code in codes if code in reason), "")
    if code:
        return advice(code, reason, "the stack")
    return _short(reason)


def _denied(message: str, doing: str) -> str:
    action, resource = _ACTION.search(message), _RESOURCE.search(message)
    lacking = action.group(1) if action else doing
    place = f" on {resource.group(1)}" if resource else ""
    return f"the AWS credentials lack a right: allow {lacking}{place} (docs/ec2-first-hour.md)"


def _quota(code: str, message: str, instance_type: str) -> Quota | None:
    if code in OTHERS:
        return OTHERS[code]
    if code not in _QUOTA_CODES and code != _SPOT_QUOTA:
        return None
    found = _TYPE.search(message)
    return vcpu_quota(instance_type or (found.group(1) if found else ""), spot=code == _SPOT_QUOTA)


def _named(quota: Quota) -> str:
    return f"'{quota.name}' ({quota.code}): {quota.request}"


def _short(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
