"""Whether the hotkey may do what the role is for, asked of the chain before anything else is started."""

from node.chain.interface import Chain, Metagraph, Neuron
from protocol.errors import NotPermitted
from protocol.types import Hotkey


async def require_registered(chain: Chain, hotkey: Hotkey, *, netuid: int) -> tuple[Metagraph, Neuron]:
    """The metagraph and the hotkey's neuron. Raises NotPermitted when it has none."""
    metagraph = await chain.metagraph()
    neuron = metagraph.neurons.get(hotkey)
    if neuron is None:
        raise NotPermitted(
            f"hotkey {hotkey} is not registered on subnet {netuid} (block {metagraph.height}): "
            f"register it with `btcli subnet register --netuid {netuid}`"
        )
    return metagraph, neuron


async def require_validator(chain: Chain, hotkey: Hotkey, *, netuid: int, min_stake_tao: float) -> Neuron:
    """The hotkey's neuron. Raises NotPermitted when it is no validator on the subnet."""
    _, neuron = await require_registered(chain, hotkey, netuid=netuid)
    if not neuron.validator_permit:
        raise NotPermitted(
            f"hotkey {hotkey} (UID {neuron.uid}) has no validator permit on subnet {netuid}: "
            "it needs more stake, and permits are given at the end of an epoch"
        )
    needed_tao = max(min_stake_tao, (await chain.weight_rules()).min_stake_tao)
    if neuron.stake_tao < needed_tao:
        raise NotPermitted(
            f"hotkey {hotkey} (UID {neuron.uid}) has {neuron.stake_tao:g} TAO of stake on subnet {netuid}, "
            f"a validator needs {needed_tao:g}"
        )
    return neuron
