"""The D-Bus service org.kernel.TCMUService1, by which targetcli sees the handlers."""

from tcmu_core.bus.service import BusService

__all__ = ["BusService"]
