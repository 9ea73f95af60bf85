"""`shunt ec2 plan`: options and an account's offers become a quote."""

from __future__ import annotations

from services.cli.ec2.account import Account
from services.cli.ec2.options import Options
from services.cli.ec2.quote import Quote, quote
from services.cli.ec2.standing import standing_of
from services.cli.ec2.stored import stored_model
from services.cli.ec2.template import Template


def planned(options: Options) -> Quote:
    """Asks an account that nothing is bought in. Raises MeshError."""
    options.checked()
    model = stored_model(options.model, options.store, sizes_suffice=True)
    account = Account.open(options.region)
    table = options.table
    standing = standing_of(Template.read().defaults, options.routers)
    return quote(account, model, table, options.wish(table), standing)
