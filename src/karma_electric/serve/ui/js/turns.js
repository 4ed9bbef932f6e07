// A conversation held in one or two columns: what was said, what each column answered, and what each is sent next.
//
// Each column has a history of its own. A column that joins later starts from what the first one answered until then.

export const CAPPED = "capped";
export const UNCAPPED = "uncapped";

export class Conversation {
  constructor() {
    this.turns = []; // {prompt, replies: {column: Reply}}
  }

  add(prompt) {
    const turn = { number: this.turns.length + 1, prompt, replies: {} };
    this.turns.push(turn);
    return turn;
  }

  get last() {
    return this.turns.at(-1) ?? null;
  }

  // The reply that stands in a column's history for a turn: its own, else the first column's.
  replyOf(turn, column) {
    return turn.replies[column] ?? turn.replies[CAPPED] ?? null;
  }

  // Messages of a column up to and with a turn's prompt. A turn without any text in its answer is left out: a model
  // would be shown a silence that it never gave.
  messages(column, upTo, system) {
    const messages = [{ role: "system", content: system }];
    for (const turn of this.turns) {
      if (turn === upTo) break;
      const reply = this.replyOf(turn, column);
      if (!reply?.text.trim()) continue;
      messages.push({ role: "user", content: turn.prompt }, { role: "assistant", content: reply.text });
    }
    messages.push({ role: "user", content: upTo.prompt });
    return messages;
  }

  columns() {
    return [CAPPED, UNCAPPED].filter((column) => this.turns.some((turn) => turn.replies[column]));
  }

  // As `karma drift` and `karma chat` read it: one conversation, or a list of them.
  exported(model, system) {
    const all = this.columns().map((column) => {
      const messages = system.trim() ? [{ role: "system", content: system }] : [];
      for (const turn of this.turns) {
        const reply = this.replyOf(turn, column);
        if (!reply?.text.trim()) continue;
        messages.push({ role: "user", content: turn.prompt });
        messages.push({ role: "assistant", content: reply.text, ...(reply.alpha === null ? {} : { alpha: reply.alpha }) });
      }
      const last = this.turns.map((turn) => this.replyOf(turn, column)).findLast((reply) => reply?.text.trim());
      return {
        model: model?.model ?? null,
        cap: null,
        cap_sha256: model?.cap?.sha256 ?? null,
        alpha: last?.alpha ?? null,
        column,
        messages,
        answers: this.turns.map((turn) => this.replyOf(turn, column)?.record()).filter(Boolean),
      };
    });
    return all.length === 1 ? all[0] : all;
  }
}

// One answer of one column, and everything that is told about it.
export class Reply {
  constructor({ column, alpha, sampling }) {
    this.column = column;
    this.alpha = alpha; // null: the server's own, or no cap
    this.sampling = sampling;
    this.text = "";
    this.finish = null;
    this.tokens = null;
    this.capRate = null;
    this.drift = null; // {mean, max, share_above}
    this.problem = null;
    this.started = performance.now();
    this.seconds = null;
  }

  // One event of the stream. Returns the new text and tokens.
  take(event) {
    const choice = event.choices?.[0];
    const text = choice?.delta?.content ?? "";
    this.text += text;
    if (choice?.finish_reason) this.finish = choice.finish_reason;
    if (event.usage) this.tokens = event.usage.completion_tokens;
    const karma = event.karma;
    if (karma && "cap_rate" in karma) {
      this.capRate = karma.cap_rate;
      this.drift = karma.drift ?? null;
      if (typeof karma.alpha === "number") this.alpha = karma.alpha;
    }
    return { text, tokens: karma?.tokens ?? [] };
  }

  // An answer that ended early has no last event: what its tokens say of drift stands in for it.
  end(tokens) {
    this.seconds = (performance.now() - this.started) / 1000;
    const measured = tokens.filter((token) => typeof token.drift === "number");
    if (this.drift || !measured.length) return;
    const mean = (key) => measured.reduce((sum, token) => sum + token[key], 0) / measured.length;
    this.drift = { mean: mean("drift"), max: Math.max(...measured.map((token) => token.drift)), share_above: mean("share_above") };
  }

  record() {
    return {
      alpha: this.alpha,
      ...this.sampling,
      finish_reason: this.finish,
      cap_rate: this.capRate,
      drift: this.drift && { mean: this.drift.mean, max: this.drift.max, share_above: this.drift.share_above },
    };
  }
}
