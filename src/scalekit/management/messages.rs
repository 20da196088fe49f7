//! The same things as gRPC's messages.

use super::{Listing, NewToken, Page, Token};
use crate::scalekit::proto;

/// A key as gRPC tells of it; `None` where a moment is none.
pub(super) fn told(token: proto::Token) -> Option<Token> {
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let moment = |moment: Option<proto::Timestamp>| match moment {
        None => Some(None),
        Some(moment) => moment.moment().map(Some),
    };
    Some(Token {
        token_id: token.token_id,
        organization_id: token.organization_id,
        organization_external_id: some(Some(token.organization_external_id)),
        user_id: some(token.user_id),
        user_external_id: some(token.user_external_id),
        email: some(token.email),
        roles: token.roles,
        custom_claims: token.custom_claims,
        description: some(token.description),
        token_suffix: some(Some(token.token_suffix)),
        created_at: moment(token.created_at)?,
        expiry: moment(token.expiry)?,
    })
}

impl From<&NewToken> for proto::CreateToken {
    fn from(new: &NewToken) -> Self {
        Self {
            organization_id: new.organization_id.clone(),
            user_id: new.user_id.clone().unwrap_or_default(),
            custom_claims: new.custom_claims.clone(),
            expiry: new.expiry.map(proto::Timestamp::from),
            description: new.description.clone().unwrap_or_default(),
        }
    }
}

impl From<&Listing> for proto::ListTokensRequest {
    fn from(listing: &Listing) -> Self {
        Self {
            organization_id: listing.organization_id.clone(),
            user_id: listing.user_id.clone(),
            page_size: listing.page_size.unwrap_or_default().into(),
            page_token: listing.page_token.clone().unwrap_or_default(),
        }
    }
}

/// A part of a list; `None` where a moment is none.
pub(super) fn page_of(page: proto::ListTokensResponse) -> Option<Page> {
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    Some(Page {
        tokens: page.tokens.into_iter().map(told).collect::<Option<_>>()?,
        total_count: page.total_count.into(),
        next_page_token: some(page.next_page_token),
        prev_page_token: some(page.prev_page_token),
    })
}
