// What can go wrong, by name. Knows nothing else. Every message is one line with both values and the remedy.

/** Base of every error of this package; `name` is the class's. */
export class LM2Error extends Error {
  constructor(message) {
    super(message);
    this.name = this.constructor.name;
  }
}

/** A model's files, or the browser, do not allow what is asked. */
export class ModelError extends LM2Error {}
/** A message, a setting or a window that cannot be taken. */
export class PromptError extends LM2Error {}
/** Logits from which no token can be chosen. */
export class LogitsError extends LM2Error {}

/** Base of everything that can be wrong with a session file; names as in docs/session-file.md. */
export class SessionError extends LM2Error {}
export class SessionMissingError extends SessionError {}
export class SessionTruncatedError extends SessionError {}
export class SessionTooLargeError extends SessionError {}
export class SessionFormatError extends SessionError {}
export class SessionVersionError extends SessionError {}
export class SessionCorruptError extends SessionError {}
export class SessionModelError extends SessionError {}
export class SessionTokenizerError extends SessionError {}
export class SessionShapeError extends SessionError {}
export class SessionLockedError extends SessionError {}
export class SessionValueError extends SessionError {}

/** Foreign text for a one-line message: control characters as escapes, cut at `limit` characters. */
export function plain(text, limit = 60) {
  const shown = String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
  return shown.length <= limit ? shown : `${shown.slice(0, limit - 3)}...`;
}
