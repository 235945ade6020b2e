// Names of random sites: a site is a module path and an ordinal, hashed to 32 bits.

/** FNV-1a hash of a text, as a signed 32-bit integer: the `site` of a random op. */
export function siteHash(text: string): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) {
    hash ^= byte;
    hash = Math.imul(hash, 0x01000193);
  }
  return hash | 0;
}
