"""Names, object paths and introspection data of org.kernel.TCMUService1: the C runner's, and ChangeMedium."""

from __future__ import annotations

import re

BUS_NAME = "org.kernel.TCMUService1"
ROOT_PATH = "/org/kernel/TCMUService1"
MANAGER_NAME = f"{BUS_NAME}.HandlerManager1"
MANAGER_PATH = f"{ROOT_PATH}/HandlerManager1"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
PROPERTIES = "org.freedesktop.DBus.Properties"
DBUS = "org.freedesktop.DBus"
DBUS_PATH = "/org/freedesktop/DBus"

MediumResult = tuple[int, str]  # what ChangeMedium returns: 0 or a negative errno, and what to tell the person

HANDLER_XML = f"""
<node>
  <interface name="{BUS_NAME}">
    <property name="ConfigDesc" type="s" access="read"/>
    <method name="CheckConfig">
      <arg name="configstr" type="s" direction="in"/>
      <arg name="is_valid" type="b" direction="out"/>
      <arg name="message" type="s" direction="out"/>
    </method>
    <method name="ChangeMedium">
      <arg name="name" type="s" direction="in"/>
      <arg name="size" type="t" direction="in"/>
      <arg name="configstr" type="s" direction="in"/>
      <arg name="result" type="i" direction="out"/>
      <arg name="message" type="s" direction="out"/>
    </method>
  </interface>
</node>
"""

MANAGER_XML = f"""
<node>
  <interface name="{MANAGER_NAME}">
    <method name="RegisterHandler">
      <arg name="subtype" type="s" direction="in"/>
      <arg name="cfgstr_desc" type="s" direction="in"/>
      <arg name="succeeded" type="b" direction="out"/>
      <arg name="message" type="s" direction="out"/>
    </method>
  </interface>
</node>
"""

ROOT_XML = f"""
<node>
  <interface name="{OBJECT_MANAGER}">
    <method name="GetManagedObjects">
      <arg name="object_paths_interfaces_and_properties" type="a{{oa{{sa{{sv}}}}}}" direction="out"/>
    </method>
    <signal name="InterfacesAdded">
      <arg name="object_path" type="o"/>
      <arg name="interfaces_and_properties" type="a{{sa{{sv}}}}"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg name="object_path" type="o"/>
      <arg name="interfaces" type="as"/>
    </signal>
  </interface>
</node>
"""

_PATH_ELEMENT = re.compile(r"[A-Za-z0-9_]+")  # D-Bus Specification, "Valid Object Paths"
_NAME_ELEMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # the same, "Bus names" and "Interface names"
_MAX_NAME = 255  # D-Bus Specification, "Valid Names"


def path_error(subtype: str) -> str:
    """Say why a handler of this name can't be an object on the bus; empty when it can."""
    if subtype == "HandlerManager1":
        return "the name belongs to the handler manager"
    if _PATH_ELEMENT.fullmatch(subtype) is None:
        return "an object path holds ASCII letters, digits and _ only"
    return ""


def handler_path(subtype: str) -> str:
    """Return the object path of a handler; targetcli reads the handler's name back from its last element."""
    return f"{ROOT_PATH}/{subtype}"


def external_name(subtype: str) -> str:
    """Return the bus name that an external handler's process owns; empty when there can be none."""
    name = f"{MANAGER_NAME}.{subtype}"
    return name if _NAME_ELEMENT.fullmatch(subtype) and len(name) <= _MAX_NAME else ""


def external_path(subtype: str) -> str:
    """Return where an external handler's process exports its CheckConfig."""
    return f"{MANAGER_PATH}/{subtype}"
