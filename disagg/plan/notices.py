"""What the transfers tell the controller: parts that have landed, sources that were read, failures, ends.

A transfer ends once; a notice about one that is not open changes nothing, and counts as an anomaly.
Notebook: notebooks/02_disaggregation.ipynb.
"""

from disagg.plan import events as ev
from disagg.plan.commands import Turn
from disagg.plan.kv_transfers import KVTransfers
from disagg.plan.request import Stage
from disagg.plan.state import ControllerState
from disagg.plan.transfer import PAGING, Transfer


class Notices:
    def __init__(self, state: ControllerState, kv_transfers: KVTransfers) -> None:
        self.state, self.kv_transfers = state, kv_transfers

    def take(self, turn: Turn, event: ev.FromTransfers) -> bool:
        """Enters it into the state; False where it changes nothing."""
        transfer = self.state.transfers.get(event.transfer)
        if transfer is None:
            self.state.is_anomaly(True)
            return False
        match event:
            case ev.Landed():
                return self._landed(turn, transfer, event)
            case ev.SourceRead():
                return self._source_read(transfer)
            case ev.TransferFailed():
                return self._failed(turn, transfer, event.error)
            case ev.TransferClosed():
                return self._closed(turn, transfer)

    def _landed(self, turn: Turn, transfer: Transfer, event: ev.Landed) -> bool:
        fresh = [transfer.landed.add(part) for part in event.parts]
        self.state.counts["anomalies"] += fresh.count(False)
        if transfer.route in PAGING and all(fresh):
            self.state.costs.observe_copy(event.nbytes, event.took_ns)
        elif all(fresh):
            self.state.costs.observe_hand_off(event.nbytes, event.took_ns)
        if transfer.complete and not transfer.aborted:
            self.kv_transfers.complete(turn, transfer)
        return any(fresh)

    def _source_read(self, transfer: Transfer) -> bool:
        """The source's blocks are free while second hops still run."""
        if self.state.is_anomaly(transfer.source_read):
            return False
        transfer.source_read = True
        transfer.source.unpin(transfer.id)
        if transfer.record.stage is Stage.HANDING_OFF:
            transfer.record.drop("prefill_table")
        return True

    def _failed(self, turn: Turn, transfer: Transfer, error: str) -> bool:
        if transfer.aborted:
            return False
        cause = f"{transfer.route} transfer of request {transfer.record.id} failed: {error}"
        self.kv_transfers.fail(turn, transfer, cause)
        return True

    def _closed(self, turn: Turn, transfer: Transfer) -> bool:
        if self.state.is_anomaly(not transfer.aborted):
            return False
        self.kv_transfers.close(transfer)
        if transfer.record.finish is None:
            self.kv_transfers.recompute(turn, transfer.record)
        return True
