"""Task management: the functions of RFC 7143 11.5 and what each gets as its response (11.6)."""

from __future__ import annotations

from collections.abc import Callable

from tcmu_core.iscsi.constants import SERIAL, RejectReason, TaskFunction, TaskResponse
from tcmu_core.iscsi.errors import PduError
from tcmu_core.iscsi.pdu import TaskManagementRequest, TaskManagementResponse
from tcmu_core.iscsi.session import Session
from tcmu_core.iscsi.writes import Writes
from tcmu_core.scsi.command import Nexus
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.lun import parse_lun


class TaskManagement:
    """Answers task management requests of one session.

    A function that aborts commands is answered when they have ended, so that nothing of them comes after its response.
    `go_on` takes what waited for the turn of a command that will not come any more.
    """

    def __init__(self, session: Session, writes: Writes, go_on: Callable[[], object]) -> None:
        self._session = session
        self._writes = writes
        self._go_on = go_on
        self._waiting = 0  # requests that are answered when what they abort has ended
        self._functions: dict[int, Callable[[TaskManagementRequest], None]] = {
            TaskFunction.ABORT_TASK: self._abort_task,
            TaskFunction.ABORT_TASK_SET: self._abort_task_set,
            TaskFunction.CLEAR_TASK_SET: self._clear_task_set,
            TaskFunction.LOGICAL_UNIT_RESET: self._unit_reset,
            TaskFunction.TARGET_WARM_RESET: self._target_reset,
            TaskFunction.TARGET_COLD_RESET: self._target_reset,
        }

    def answer(self, request: TaskManagementRequest) -> None:
        """Carry out a request."""
        if self._session.attachment is None:
            raise PduError("no task management in a discovery session")
        function = request.function & 0x7F
        if function == TaskFunction.TASK_REASSIGN:  # needs error recovery level 2
            self._respond(request, TaskResponse.NO_REASSIGNMENT)
        elif function not in self._functions:  # CLEAR ACA too: NormACA is 0 in INQUIRY
            self._respond(request, TaskResponse.NOT_SUPPORTED)
        elif self._waiting >= 2 * self._session.limits.queue_depth:  # each may abort one command, and more is no use
            if request.immediate:
                raise PduError("too many task management requests", RejectReason.IMMEDIATE_COMMAND_REJECT)
            self._respond(request, TaskResponse.REJECTED)
        else:
            self._functions[function](request)

    def _respond(self, request: TaskManagementRequest, response: TaskResponse = TaskResponse.COMPLETE) -> None:
        session = self._session
        if not session.closed:
            session.respond(TaskManagementResponse(response=response, itt=request.itt))

    def _later(self, request: TaskManagementRequest) -> Callable[[], None]:
        """Return what responds to `request` once its effect is complete."""
        session = self._session
        self._waiting += 1

        def respond() -> None:
            self._waiting -= 1
            self._respond(request)
            session.announce()

        return respond

    def _find(self, request: TaskManagementRequest) -> tuple[Engine, Nexus] | None:
        """Return the unit and nexus of the request's LUN; None when it was answered: there is none."""
        attachment = self._session.attachment
        assert attachment is not None
        lun = parse_lun(request.lun)
        if lun is None or lun not in attachment.it.luns or lun not in attachment.target.luns:
            self._respond(request, TaskResponse.NO_LUN)
            return None
        return attachment.target.luns[lun], attachment.it.luns[lun][1]

    def _abort_task(self, request: TaskManagementRequest) -> None:
        found = self._find(request)
        if found is None:
            return
        session = self._session
        task = session.tasks.get(request.referenced_tag)
        if task is not None and parse_lun(task.lun) == parse_lun(request.lun):
            found[0].abort(task.command, self._later(request))
        elif self._writes.drop(request.lun, request.referenced_tag):
            self._respond(request)
        elif request.immediate and self._drop_held(request.ref_cmd_sn, request.cmd_sn):
            self._writes.pass_over(request.referenced_tag)
            self._respond(request)
        else:
            self._respond(request, TaskResponse.NO_TASK)

    def _drop_held(self, cmd_sn: int, before: int) -> bool:
        """Count a command as received and aborted that did not come yet and has a CmdSN below `before` (11.6.1)."""
        session = self._session
        ahead = (cmd_sn - session.exp_cmd_sn) & SERIAL
        if ahead >= min((before - session.exp_cmd_sn) & SERIAL, session.limits.queue_depth - session.busy):
            return False
        session.held.abort(cmd_sn)
        self._go_on()
        return True

    def _drop(self, request: TaskManagementRequest, lun: bytes | None) -> None:
        """Drop the commands of a LUN, or all, that have come before the request and wait: for data, or their turn.

        That an immediate request goes before them does not let them run behind it (RFC 7143 4.2.3.3).
        """
        session = self._session
        self._writes.drop(lun)
        if not request.immediate:
            return  # all that comes before it has had its turn
        number = None if lun is None else parse_lun(lun)
        before = (request.cmd_sn - session.exp_cmd_sn) & SERIAL
        for cmd_sn, command in session.held.commands():
            if (cmd_sn - session.exp_cmd_sn) & SERIAL < before and (lun is None or parse_lun(command.lun) == number):
                session.held.abort(cmd_sn)
                self._writes.pass_over(command.itt)

    def _abort_task_set(self, request: TaskManagementRequest) -> None:
        found = self._find(request)
        if found is not None:
            self._drop(request, request.lun)
            found[0].abort_task_set(found[1], self._later(request))

    def _clear_task_set(self, request: TaskManagementRequest) -> None:
        found = self._find(request)
        if found is not None:
            self._drop(request, request.lun)
            found[0].clear_task_set(found[1], self._later(request))

    def _unit_reset(self, request: TaskManagementRequest) -> None:
        found = self._find(request)
        if found is not None:
            self._drop(request, request.lun)
            found[0].reset(found[1], self._later(request))

    def _target_reset(self, request: TaskManagementRequest) -> None:
        session = self._session
        attachment = session.attachment
        assert attachment is not None
        self._drop(request, None)
        respond = self._later(request)
        cold = request.function & 0x7F == TaskFunction.TARGET_COLD_RESET

        def ended() -> None:
            respond()
            if cold:  # 11.5.1: all connections of the target end with it
                session.reset_target(attachment.target)

        attachment.target.reset(attachment.it, ended)
