// What calls answer or throw, as the state takes it. Pure.

/** Problem details of whatever was thrown. */
export const problemOf = (error) =>
  error.problem ?? { title: "Something went wrong on this page", detail: String(error) };

/** How long an instance stays, by its view after a stop, an extension or a look. Others may hold what we stopped. */
export function leaseAfter({ state, expires_at, reason }) {
  if (state === "stopped" || state === "removed" || state === "failed") {
    return { over: true, note: reason === "expired" || reason === "evicted" ? "" : "The service is stopped." };
  }
  if (reason.startsWith("your lease ended")) return { over: true, note: "You let go of it; others still use it." };
  return { expires_at, note: "", over: false };
}
