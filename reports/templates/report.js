(function () {
  "use strict";
  var data = JSON.parse(document.getElementById("data").textContent);
  var root = document.documentElement;
  function byId(id) { return document.getElementById(id); }

  // state: the address is #place&key=value&..., so that a link shows what its sender saw
  var state = {};
  function place() { var first = location.hash.slice(1).split("&")[0]; return first.indexOf("=") < 0 ? first : ""; }
  function readState() {
    state = {};
    location.hash.slice(1).split("&").forEach(function (part) {
      var at = part.indexOf("=");
      if (at > 0) { try { state[part.slice(0, at)] = decodeURIComponent(part.slice(at + 1)); } catch (e) { /* cut off */ } }
    });
  }
  function writeState() {
    var parts = Object.keys(state).map(function (key) { return key + "=" + encodeURIComponent(state[key]); });
    var text = [place()].concat(parts).filter(Boolean).join("&");
    try { history.replaceState(null, "", "#" + text); } catch (e) { /* not allowed here */ }
  }
  function keep(key, value) {
    if (value === "" || value === null) { delete state[key]; } else { state[key] = value; }
    writeState();
  }
  readState();

  // theme: follows the system until the button is used
  var button = byId("theme");
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function isDark() { return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches; }
  function name() { button.textContent = isDark() ? "Light" : "Dark"; }
  if (state.theme) { root.dataset.theme = state.theme === "dark" ? "dark" : "light"; }
  button.hidden = false;
  name();
  button.addEventListener("click", function () {
    root.dataset.theme = isDark() ? "light" : "dark";
    keep("theme", root.dataset.theme);
    name();
  });

  function save(text, file, kind) {
    var link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: kind }));
    link.download = file;
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 1000);
  }
  function cellText(text) { return /[",\n\r]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text; }
  // a value and its interval: 1.2 (0.4 to 2.0)
  function numbers(text) {
    var found = (text.replace(/\u2212/g, "-").match(/-?[\d.]+(?:e-?\d+)?|infinite/g) || []);
    return found.length >= 3 && text.indexOf("not measured") < 0 ? found.slice(0, 3) : ["", "", ""];
  }

  // every table can be taken along
  document.querySelectorAll(".scroll > table:not(.heat)").forEach(function (table) {
    var control = document.createElement("button");
    control.type = "button";
    control.className = "take";
    control.textContent = "CSV";
    control.setAttribute("aria-label", "Download as CSV: " + table.parentNode.getAttribute("aria-label"));
    control.addEventListener("click", function () {
      // the name of a group of rows is a column of its own
      var first = table.querySelector(".group") ? ["Model"] : [], lines = [];
      Array.from(table.rows).forEach(function (row) {
        var cells = Array.from(row.cells).map(function (cell) { return cell.textContent.trim().replace(/\u00a0/g, " "); });
        if (row.className === "group") { first = cells; return; }
        lines.push(first.concat(cells).map(cellText).join(","));
      });
      save(lines.join("\n") + "\n", "table.csv", "text/csv");
    });
    table.parentNode.after(control);
  });

  var restores = [];
  document.querySelectorAll(".model-section").forEach(function (section) {
    var number = section.dataset.model, model = data.models[Number(number)];
    var table = section.querySelector(".heat");
    var body = table.tBodies[0];
    var rows = Array.from(body.rows);
    var heads = Array.from(table.tHead.rows[0].cells);
    var columns = heads.map(function (head, i) { return head.dataset.b ? i : -1; }).filter(function (i) { return i >= 0; });
    function moduleOf(row) { return row.cells[0].textContent; }
    function roleOf(row) { return model.roles[row.cells[1].textContent]; }
    function indexOf(row) { return row.id.split("-").pop(); }
    function sheet(row) { return byId("m" + number + "-" + indexOf(row)); }
    function details(row, column) {
      var line = sheet(row).querySelector(".cells").children[column - columns[0]];
      var text = line.textContent.replace(/^[^:]*: /, ""), found = /^(.*); (.*) nats$/.exec(text);
      return found ? [found[1], found[2]] : [text];
    }
    function nats(row, column) {
      var found = /-?[\d.]+(?:e-?\d+)?/.exec((details(row, column)[1] || "").replace(/\u2212/g, "-"));
      return found ? Number(found[0]) : -1;
    }
    function bitsOf(row) { return row.querySelector(".bits b").textContent; }

    // order: by a column, and within groups
    var sorting = { column: 0, order: "ascending" };
    var group = byId("group-" + number);
    function value(row, column) {
      var kind = heads[column].dataset.sort;
      if (kind === "index") { return Number(indexOf(row)); }
      if (kind === "bits") { return Number((/\d+/.exec(bitsOf(row)) || [0])[0]); }
      return kind === "text" ? row.cells[column].textContent : nats(row, column);
    }
    function groupOf(row) { return group.value === "role" ? row.cells[1].textContent : row.dataset.k || "(no block)"; }
    function arrange() {
      var sign = sorting.order === "ascending" ? 1 : -1, made = {}, shown = [];
      body.querySelectorAll(".group").forEach(function (row) { row.remove(); });
      var ordered = rows.map(function (row) { return [value(row, sorting.column), row]; }).sort(function (a, b) {
        return sign * (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0);
      }).map(function (pair) { return pair[1]; });
      if (!group.value) { ordered.forEach(function (row) { body.appendChild(row); }); return; }
      ordered.forEach(function (row) {
        var key = "g" + groupOf(row);
        if (!made[key]) { made[key] = []; shown.push(key); }
        made[key].push(row);
      });
      shown.forEach(function (key) {
        var visible = made[key].filter(function (row) { return !row.hidden; });
        var head = document.createElement("tr"), cell = document.createElement("th");
        head.className = "group";
        head.hidden = !visible.length;
        cell.colSpan = heads.filter(function (head, at) { return columns.indexOf(at) < 0 && head.offsetWidth; }).length || 1;
        cell.scope = "rowgroup";
        cell.textContent = key.slice(1) + ": " + visible.length + (visible.length === 1 ? " module" : " modules") + ", share of the divergence";
        head.appendChild(cell);
        columns.forEach(function (column) {
          var total = 0, all = 0, sum = document.createElement("td");
          visible.forEach(function (row) { total += Math.max(nats(row, column), 0); });
          rows.forEach(function (row) { all += Math.max(nats(row, column), 0); });
          sum.textContent = all > 0 ? Math.round(100 * total / all) + " %" : "\u2013";
          head.appendChild(sum);
        });
        body.appendChild(head);
        made[key].forEach(function (row) { body.appendChild(row); });
      });
    }
    function sortBy(column, order) {
      heads.forEach(function (h) { h.removeAttribute("aria-sort"); });
      heads[column].setAttribute("aria-sort", order);
      sorting = { column: column, order: order };
      arrange();
    }
    heads.forEach(function (head, column) {
      var kind = head.dataset.sort;
      if (!kind) { return; }
      var control = document.createElement("button");
      control.type = "button";
      control.textContent = head.textContent;
      head.textContent = "";
      head.appendChild(control);
      control.addEventListener("click", function () {
        var up = head.getAttribute("aria-sort") === "ascending";
        var first = kind === "text" || kind === "index" ? "ascending" : "descending";
        var order = head.hasAttribute("aria-sort") ? (up ? "descending" : "ascending") : first;
        sortBy(column, order);
        keep("sort" + number, column || order === "descending" ? column + order[0] : "");
      });
    });

    // filters
    var filters = section.querySelector(".filters"), shown = filters.querySelector(".count");
    var input = byId("filter-" + number), role = byId("role-" + number), block = byId("block-" + number);
    filters.hidden = false;
    function offer(select, values) {
      Array.from(new Set(values)).filter(Boolean).forEach(function (text) {
        var option = document.createElement("option");
        option.textContent = text;
        select.appendChild(option);
      });
    }
    offer(role, rows.map(function (row) { return row.cells[1].textContent; }));
    offer(block, rows.map(function (row) { return row.dataset.k; }));
    function filter() {
      var wanted = input.value.toLowerCase(), count = 0;
      rows.forEach(function (row) {
        row.hidden = moduleOf(row).toLowerCase().indexOf(wanted) < 0 ||
          (role.value !== "" && row.cells[1].textContent !== role.value) || (block.value !== "" && row.dataset.k !== block.value);
        count += row.hidden ? 0 : 1;
      });
      shown.textContent = count < rows.length ? count + " of " + rows.length : "";
      if (group.value) { arrange(); }
    }
    [[input, "input", "filter"], [role, "change", "role"], [block, "change", "block"], [group, "change", "group"]].forEach(function (row) {
      row[0].addEventListener(row[1], function () {
        keep(row[2] + number, row[0].value);
        if (row[2] === "group") { arrange(); } else { filter(); }
      });
    });
    filters.querySelector(".csv").addEventListener("click", function () {
      var lines = ["module,role,block,plan_bits,bits,loss,loss_low,loss_high,nats,nats_low,nats_high"];
      rows.forEach(function (row) {
        if (row.hidden) { return; }
        columns.forEach(function (column) {
          var cells = details(row, column);
          lines.push([moduleOf(row), roleOf(row), row.dataset.k || "", bitsOf(row), heads[column].dataset.b]
            .concat(numbers(cells[0]), numbers(cells[1] || "")).map(cellText).join(","));
        });
      });
      save(lines.join("\n") + "\n", "sensitivity-" + number + ".csv", "text/csv");
    });

    // the numbers of one cell: under the pointer, touched, or reached with the arrow keys
    var readout = filters.querySelector(".readout");
    function named(label) { return /^\d+$/.test(label) ? label + " bits" : label; }
    function words(cell) {
      var row = cell.parentNode, found, noise;
      if (columns.indexOf(cell.cellIndex) < 0) {
        found = sheet(row).querySelector("p").textContent.replace(/\s*Table row\s*$/, "");
        return moduleOf(row) + ": " + named(bitsOf(row)) + ". " + found;
      }
      found = details(row, cell.cellIndex);
      noise = cell.classList.contains("noise") || (found[1] && table.classList.contains("nats")) ? "; not distinguishable from zero" : "";
      return moduleOf(row) + " at " + named(heads[cell.cellIndex].dataset.b) + ": " + found[0] +
        (found[1] ? ", " + found[1] + " nats" : "") + noise;
    }
    function cellOf(event) {
      var cell = event.target.closest("tbody td, tbody th");
      return cell && cell.parentNode.className !== "group" ? cell : null;
    }
    var pointer = "";
    ["mousemove", "click", "focusin"].forEach(function (kind) {
      body.addEventListener(kind, function (event) {
        // the table scrolling under a pointer at rest is no pointing
        var where = event.clientX + " " + event.clientY, rests = kind === "mousemove" && where === pointer;
        var cell = cellOf(event);
        pointer = kind === "mousemove" ? where : pointer;
        if (cell && !rests) { readout.textContent = words(cell); }
      });
    });
    rows.forEach(function (row) { row.querySelector("a").tabIndex = -1; });
    // one stop of the tab key; from there the arrow keys
    var current = rows[0].cells[0];
    current.tabIndex = 0;
    function go(cell) {
      current.removeAttribute("tabindex");
      current = cell;
      cell.tabIndex = 0;
      cell.focus();
    }
    body.addEventListener("keydown", function (event) {
      var cell = cellOf(event), next = null, row = cell && cell.parentNode, column = cell && cell.cellIndex;
      if (!cell) { return; }
      if (event.key === "Enter" && event.target === cell) { location.hash = "m" + number + "-" + indexOf(row); return; }
      // a narrow page does not show all columns
      if (event.key === "ArrowRight") { do { next = (next || cell).nextElementSibling; } while (next && !next.offsetWidth); }
      if (event.key === "ArrowLeft") { do { next = (next || cell).previousElementSibling; } while (next && !next.offsetWidth); }
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        do { row = event.key === "ArrowDown" ? row.nextElementSibling : row.previousElementSibling; } while (row && (row.hidden || row.className === "group"));
        next = row && row.cells[column];
      }
      if (next) { event.preventDefault(); go(next); }
    });

    // what if: the bits of a precomputed point of the front, or of the plan in force among them
    var taken = section.querySelector(".plan");
    var box = section.querySelector(".whatif");
    var pick = function () {};
    if (box) { pick = whatIf(); } else if (taken) { taken.querySelector("span").hidden = true; }
    function whatIf() {
      var front = model.front.map(named), writer = model.writer, said = box.dataset, mine = Number(said.at);
      var lines = byId("front-" + number).querySelectorAll("tbody tr");
      var slider = box.querySelector("input"), out = box.querySelector("output"), take = box.querySelector(".save");
      var by = box.querySelector(".by"), jumps = Array.from(box.querySelectorAll(".go, .reset"));
      var chosen = rows.map(bitsOf), picked = null, file = taken.dataset.name;
      box.hidden = false;
      taken.hidden = Boolean(window.DecompressionStream);
      function named(values) {
        var point = {};
        data.names.forEach(function (key, k) { point[key] = values[k]; });
        return point;
      }
      // undefined for what the plan leaves in float
      function format(p, i) { return writer.formats[p.choices.charCodeAt(i) - 48]; }
      function label(p, i) {
        var form = writer && format(p, i);
        return writer ? (form ? writer.words[form[3]][0] : "\u2013") : p.labels[i];
      }
      function show(widths) {
        rows.forEach(function (row, i) {
          var inSheet = sheet(row).parentNode.querySelector("summary b");
          row.querySelector(".bits b").textContent = widths[i];
          if (inSheet) { inSheet.textContent = widths[i]; }
          columns.forEach(function (column) { row.cells[column].classList.toggle("pick", heads[column].dataset.b === widths[i]); });
        });
      }
      // the table of the front has the same plans in the same order
      function about(at) {
        var cells = Array.from(lines[at].cells).map(function (cell) { return cell.textContent; });
        return cells[1] + " bits, " + cells[2] + " MB, " + cells[3] + " \u00d7 10\u2079 bit operations, predicted " + said.loss + " " + cells[4] + " points; " +
          (cells[5] === "\u2013" ? "not measured as a whole" : "measured as a whole" + (picked ? " (" + cells[6] + ")" : "") + ": " + cells[5] + " points");
      }
      function choose(at) {
        picked = at === mine ? null : front[at - (at > mine)];
        slider.value = at;
        show(picked ? rows.map(function (row, i) { return label(picked, i); }) : chosen);
        var text = (picked ? "Point " + picked.point : "The " + said.called) + ": " + about(at);
        slider.setAttribute("aria-valuetext", text);
        out.textContent = text + ".";
        jumps.forEach(function (jump) { jump.setAttribute("aria-pressed", Number(jump.dataset.at) === at); });
        file = picked ? taken.dataset.name.replace(/\.json$/, "-point-" + picked.point + ".json") : taken.dataset.name;
        take.hidden = picked && !writer;
        take.textContent = "Download " + file;
        by.children[0].textContent = picked ? "The same file by command:" : "The same file in the run:";
        by.children[1].textContent = picked ? said.command + " " + picked.point + " --out " + quoted(file) : said.file;
      }
      function quoted(word) { return /^[\w.-]+$/.test(word) ? word : "'" + word.replace(/'/g, "'\"'\"'") + "'"; }
      function move(at) {
        choose(at);
        keep("plan" + number, picked ? String(front.indexOf(picked)) : "");
      }
      function object(names, values) {
        return "{\n" + names.map(function (key, k) { return '  "' + key + '": ' + values[k]; }).join(",\n") + "\n }";
      }
      // the very bytes that vitsense plan --point writes
      function reason(i) {
        var own = format(picked, i)[3], costs = writer.nats[i].split(" "), at = writer.words[own][1], below = writer.below[writer.kind[i]][own];
        function fill(text, values) { return text.replace(/\{(\w+)\}/g, function (_, key) { return values[key]; }); }
        var cost = fill(data.reasons.cost, { kl: costs[own], at: at, share: picked.shares.charCodeAt(i) - 48 || "< 1" });
        if (writer.pinned.indexOf(i) >= 0) { return fill(data.reasons.pinned, { at: at, cost: cost }); }
        if (below < 0) { return fill(data.reasons.narrowest, { cost: cost }); }
        return fill(data.reasons.below, { cost: cost, below: writer.words[below][1], next: costs[below] });
      }
      function plan() {
        var modules = [];
        rows.forEach(function (row, i) {
          var form = format(picked, i);
          if (!form) { return; }
          modules.push({
            name: moduleOf(row), bits: form[0], role: roleOf(row), weight: form[1], activation: form[2],
            pinned: writer.pinned.indexOf(i) >= 0, reason: reason(i)
          });
        });
        var text = JSON.stringify(modules, null, 1).replace(/\n/g, "\n ");
        var values = picked.text.split(" "), parts = writer.parts;
        return parts[0] + text + parts[1] + model.ahead + values[0] + parts[2] + object(writer.cost, values.slice(1)) + parts[3] + object(writer.predicted, values.slice(1 + writer.cost.length)) + parts[4];
      }
      slider.addEventListener("input", function () { move(Number(slider.value)); });
      jumps.forEach(function (jump) { jump.addEventListener("click", function () { move(Number(jump.dataset.at)); }); });
      take.addEventListener("click", function () {
        if (picked) { save(plan(), file, "application/json"); } else { taken.click(); }
      });
      return function (point) { choose(front[point] ? point + (point >= mine) : mine); };
    }

    // what the address says
    function restore() {
      var wanted = /^(\d+)([ad])$/.exec(state["sort" + number] || "");
      [[input, "filter"], [role, "role"], [block, "block"], [group, "group"]].forEach(function (pair) {
        pair[0].value = state[pair[1] + number] || "";
      });
      filter();
      if (wanted && heads[wanted[1]] && heads[wanted[1]].dataset.sort) {
        sortBy(Number(wanted[1]), wanted[2] === "a" ? "ascending" : "descending");
      } else { arrange(); }
      pick(state["plan" + number] === undefined ? -1 : Number(state["plan" + number]));
    }
    restore();
    restores.push(restore);
  });

  // plans are in the page as gzip; who cannot unpack them here takes them packed
  document.querySelectorAll("a.plan").forEach(function (link) {
    link.addEventListener("click", function (event) {
      var at = link.getAttribute("href"), taken = at[0] === "#" ? byId(at.slice(1)) : link;
      if (!taken || !window.DecompressionStream) { return; }
      var raw = Uint8Array.from(atob(taken.href.split(",")[1]), function (c) { return c.charCodeAt(0); });
      var packed = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
      event.preventDefault();
      new Response(packed).text().then(function (text) { save(text, taken.dataset.name, "application/json"); });
    });
  });

  // a place inside something folded is unfolded
  function open() {
    var target = place() && byId(place());
    if (!target) { return; }
    for (var node = target; node; node = node.parentNode) { if (node.tagName === "DETAILS") { node.open = true; } }
    target.scrollIntoView();
    if (target.tabIndex < 0 && target.hasAttribute("tabindex")) { target.focus({ preventScroll: true }); }
  }
  window.addEventListener("hashchange", function () {
    // a link within the page keeps the state, unless it leads to one
    if (location.hash.indexOf("=") < 0) { writeState(); } else { readState(); restores.forEach(function (restore) { restore(); }); }
    open();
  });
  open();
  document.querySelectorAll("main h2[id], main h3[id]").forEach(function (head) {
    var link = document.createElement("a");
    link.className = "self";
    link.href = "#" + (head.parentNode.id && head.id === head.parentNode.id + "-title" ? head.parentNode.id : head.id);
    link.textContent = "#";
    link.setAttribute("aria-label", "Link to: " + head.textContent);
    head.appendChild(link);
  });

  // the list of contents closes when a chapter was chosen, and with the escape key
  var toc = document.querySelector(".toc");
  toc.addEventListener("click", function (event) { if (event.target.closest("a")) { toc.open = false; } });
  toc.addEventListener("keydown", function (event) {
    if (event.key === "Escape") { toc.open = false; toc.querySelector("summary").focus(); }
  });

  // printing shows everything
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("main details").forEach(function (d) { d.dataset.was = d.open ? "1" : ""; d.open = true; });
  });
  window.addEventListener("afterprint", function () {
    document.querySelectorAll("main details").forEach(function (d) { d.open = d.dataset.was === "1"; });
  });
})();
