"""Where the handlers of leaves register themselves."""

from __future__ import annotations

from typing import Final

from swtdx.arch.guest_leaves import GUEST_BY_NAME
from swtdx.arch.host_leaves import HOST_BY_NAME
from swtdx.module.call import HostCall
from swtdx.module.served import Handlers
from swtdx.module.vcpu import Vcpu

#: ``@host_leaf("TDH.MNG.CREATE")``: the handler of a SEAMCALL leaf.
host_leaf: Final = Handlers[HostCall](HOST_BY_NAME)
#: ``@guest_leaf("TDG.VP.INFO")``: the handler of a TDCALL leaf; it sets output registers in ``vcpu.gpr``.
guest_leaf: Final = Handlers[Vcpu](GUEST_BY_NAME)
