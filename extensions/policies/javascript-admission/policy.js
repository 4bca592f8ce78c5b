// Admission in JavaScript: long requests wait for a calm node.
//
// While the node is crowded, requests that may take many tokens are refused with
// the time after which to try again, and others get no more new tokens than a
// crowded node can spare. In a calm node everybody is served as asked.

import { get } from "quern:policy/config@0.1.0";

const settings = { crowdedPercent: 80, longTokens: 4096, spareTokens: 512 };

function number(key, fallback) {
  const text = get(key);
  if (text === undefined || text === null) return fallback;
  if (!/^[0-9]{1,9}$/.test(text.trim())) throw `${key}: '${text}' is no number`;
  return Number(text);
}

// How full the node is, in percent: of its places, or of its state.
export function crowding(load) {
  const places = load.maxRunning > 0 ? (100 * load.running) / load.maxRunning : 0;
  const state = load.kvTotal > 0 ? (100 * (load.kvTotal - load.kvFree)) / load.kvTotal : 0;
  return Math.max(places, state);
}

export function decision(request, load, { crowdedPercent, longTokens, spareTokens }) {
  const grant = { priority: request.priority, maxNew: request.maxNew, adapter: request.adapter };
  if (crowding(load) < crowdedPercent || load.waiting === 0) return { tag: "accept", val: grant };
  const tokens = request.promptTokens + request.maxNew;
  if (tokens > longTokens) {
    // As long as those who wait need at the present pace, a second at least.
    const retryAfterMs = Math.max(1000, load.waiting * Math.max(load.ttftP95Ms, 100));
    const message = `the node is crowded; requests of ${tokens} tokens wait for a calmer moment`;
    return { tag: "reject", val: { reason: "overloaded", retryAfterMs, message } };
  }
  return { tag: "accept", val: { ...grant, maxNew: Math.min(grant.maxNew, spareTokens) } };
}

export const lifecycle = {
  init(_saved) {
    settings.crowdedPercent = number("crowded-percent", 80);
    settings.longTokens = number("long-tokens", 4096);
    settings.spareTokens = number("spare-tokens", 512);
    return { name: "javascript-admission", version: "0.1.0" };
  },
  save() {
    return new Uint8Array();
  },
};

export const admission = {
  decide(request, load) {
    return decision(request, load, settings);
  },
};
