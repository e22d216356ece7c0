"""May this be kept? A request says so itself, or its tenant's default holds, or its deployment's."""

from collections.abc import Mapping

from sdpo_ray.config import CaptureConfig
from sdpo_ray.errors import DataError
from sdpo_ray.headers import CONSENT
from sdpo_ray.records import Consent


def consent_of(headers: Mapping[str, str], metadata: object, default: Consent) -> Consent:
    """Consent of one request: the header, else `metadata.consent`, else `default`.

    Where header and metadata disagree, the one that allows less counts. Raises DataError for a word that
    is neither `train` nor `none`: guessing what a user allows is not for us.
    """
    stated = [headers[CONSENT]] if CONSENT in headers else []
    if isinstance(metadata, Mapping) and "consent" in metadata:
        stated.append(str(metadata["consent"]))
    words = {word.strip().lower() for word in stated}
    if unknown := words - set(Consent):
        raise DataError(f"consent must be one of {', '.join(Consent)}, not {', '.join(sorted(unknown))}")
    if not words:
        return default
    return Consent.NONE if Consent.NONE in words else Consent.TRAIN


def default_consent(config: CaptureConfig, tenant: str) -> Consent:
    """Consent of a tenant's requests that state none."""
    named = config.tenants.get(tenant)
    return config.consent if named is None else named.consent
