# SPDX-License-Identifier: Apache-2.0
"""Requests in a caller's name: the API server decides them by the caller's own rights, and audits them as theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from kinema_kube import Kube
from kinema_kube.errors import BadRequestError, ForbiddenError, InvalidError, NotFoundError, UnauthorizedError
from kinema_server.access import Caller
from kinema_server.refusal import Refusal, forbidden, unauthorized


@asynccontextmanager
async def speaking(kube: Kube, caller: Caller) -> AsyncIterator[Kube]:
    """The cluster as the caller reaches it; what the API server refuses them is told as it told it.

    Raises:
        Refusal: 401, 403, 404, 400 or 422, as the API server said.
    """
    try:
        yield kube.in_name_of(caller.token)
    except UnauthorizedError as error:
        raise unauthorized("the token is not valid: it has expired, or was made for something else") from error
    except ForbiddenError as error:
        raise forbidden(error.message) from error
    except NotFoundError as error:
        raise Refusal(HTTPStatus.NOT_FOUND, error.message) from error
    except BadRequestError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, error.message) from error
    except InvalidError as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, error.message) from error
