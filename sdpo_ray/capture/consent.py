"""Consent of a request: stated by the request, else the tenant's default, else the deployment's."""

from collections.abc import Mapping

from sdpo_ray.config import CaptureConfig
from sdpo_ray.errors import DataError
from sdpo_ray.headers import CONSENT
from sdpo_ray.records import Consent


def consent_of(headers: Mapping[str, str], metadata: object, default: Consent) -> Consent:
    """Consent that a request states in its header or in `metadata.consent`, else `default`.

    If header and metadata disagree, the consent is NONE. Raises DataError for a value other than `train` and `none`.
    """
    stated = [headers[CONSENT]] if CONSENT in headers else []
    if isinstance(metadata, Mapping) and "consent" in metadata:
        stated.append(str(metadata["consent"]))
    values = {value.strip().lower() for value in stated}
    if unknown := values - set(Consent):
        raise DataError(f"consent must be one of {', '.join(Consent)}, not {', '.join(sorted(unknown))}")
    if not values:
        return default
    return Consent.NONE if Consent.NONE in values else Consent.TRAIN


def default_consent(config: CaptureConfig, tenant: str) -> Consent:
    """Consent of those requests of a tenant that state none."""
    named = config.tenants.get(tenant)
    return config.consent if named is None else named.consent
